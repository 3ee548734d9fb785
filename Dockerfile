# syntax=docker/dockerfile:1
# Checked without a Docker engine, by taking the same steps by hand: the build (dev profile) from a directory with nothing but what
# .dockerignore lets through; then, in a chroot that held that binary, the libraries that it links (libc, libm,
# libgcc_s) and /var/lib/walcast, as user 65532 with exactly the variables below: `serve` refused to listen on all
# interfaces without authentication, served with WALCAST_INSECURE=true, HEALTHCHECK's command ended with 0 while it ran
# and with 1 afterwards, a client received a row, and SIGTERM ended it with 0; the stripped release binary (16 MB) did the same,
# a client apart. The base images themselves were not pulled.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin walcast && strip -o /usr/local/bin/walcast target/release/walcast
# The journal's directory is made here, since the image below has no shell to make it with.
RUN mkdir /data && walcast --version

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="walcast" \
      org.opencontainers.image.description="One PostgreSQL replication slot, many gRPC subscribers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /usr/local/bin/walcast /usr/local/bin/walcast
COPY --from=build --chown=65532:65532 /data /var/lib/walcast
USER 65532:65532
VOLUME /var/lib/walcast
ENV WALCAST_DATA_DIR=/var/lib/walcast \
    WALCAST_LISTEN=0.0.0.0:50051 \
    WALCAST_HTTP=0.0.0.0:8080 \
    WALCAST_LOG_FORMAT=json
EXPOSE 50051 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=20s CMD ["/usr/local/bin/walcast", "health"]
ENTRYPOINT ["/usr/local/bin/walcast"]
CMD ["serve"]
