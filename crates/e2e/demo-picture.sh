#!/bin/sh
# The picture in README: make -s demo | crates/e2e/demo-picture.sh >docs/demo.svg
# Its text stays text; what the demo breaks and how it ends stand out.
exec awk '
  {
    if (length($0) > width) width = length($0)
    colour[NR] = /^LEDGER/ ? "#7ee08a" : /^ *[0-9.]+ s  placed/ ? "#9aa2b1" : /^ *[0-9.]+ s / ? "#f2c14e" : "#d5d8de"
    gsub(/&/, "\\&amp;"); gsub(/</, "\\&lt;"); gsub(/ /, "\\&#160;")
    line[NR] = $0
  }
  END {
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-size=\"13\" " \
      "font-family=\"ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace\">\n" \
      "<rect width=\"100%%\" height=\"100%%\" rx=\"8\" fill=\"#16181d\"/>\n", width * 7.9 + 32, NR * 18 + 28
    for (n = 1; n <= NR; n++)
      if (line[n] != "") printf "<text x=\"16\" y=\"%d\" fill=\"%s\">%s</text>\n", n * 18 + 12, colour[n], line[n]
    print "</svg>"
  }'
