//! A migration added to the folder must reach the binary; cargo does not watch it by itself.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations/outbox");
}
