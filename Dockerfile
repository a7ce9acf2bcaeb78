# One build, three images: docker build --target relay|order-svc|pay-svc .
# Each holds one binary, runs as a user without rights, and stops on SIGTERM.

FROM rust:1.95-slim-trixie AS build
# No OpenSSL, no cmake: beside the C compiler of the base image jemalloc needs make.
RUN command -v make || { apt-get update && apt-get install --yes --no-install-recommends make; }
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    CARGO_PROFILE_RELEASE_STRIP=debuginfo \
    cargo build --release --locked -p relay -p order-svc -p pay-svc \
    && mkdir /out \
    && cp target/release/relay target/release/order-svc target/release/pay-svc /out/

FROM debian:trixie-slim AS runtime
# For VERIFY_IDENTITY and amqps with certificates of public authorities.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --chmod=755 deploy/healthcheck.sh /usr/local/bin/healthcheck
USER 10001:10001
ENV LOG_FORMAT=json
# The services listen on loopback unless told otherwise; in a container the network namespace is
# the border, and only published ports leave it.

FROM runtime AS order-svc
COPY --from=build /out/order-svc /usr/local/bin/
ENV LISTEN_ADDR=0.0.0.0:8763 ADMIN_ADDR=0.0.0.0:9763
EXPOSE 8763 9763
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["healthcheck", "9763", "/livez"]
ENTRYPOINT ["order-svc"]
CMD ["run"]

FROM runtime AS pay-svc
COPY --from=build /out/pay-svc /usr/local/bin/
ENV LISTEN_ADDR=0.0.0.0:8762 ADMIN_ADDR=0.0.0.0:9762
EXPOSE 8762 9762
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["healthcheck", "9762", "/livez"]
ENTRYPOINT ["pay-svc"]
CMD ["run"]

FROM runtime AS relay
COPY --from=build /out/relay /usr/local/bin/
ENV ADMIN_ADDR=0.0.0.0:9764
EXPOSE 9764
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["healthcheck", "9764", "/livez"]
ENTRYPOINT ["relay"]
CMD ["run"]
