# PostgreSQL with pg_jetstream:  docker build -t pg_jetstream --build-arg PG_MAJOR=15 .
ARG PG_MAJOR=15

FROM rust:1.95-bookworm AS rust

FROM postgres:${PG_MAJOR}-bookworm AS build
ARG PG_MAJOR
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        build-essential libclang-dev libssl-dev pkg-config postgresql-server-dev-${PG_MAJOR} \
    && rm -rf /var/lib/apt/lists/*
# pgrx accepts only the cargo-pgrx of its own version.
RUN cargo install --locked --version 0.18.1 cargo-pgrx
WORKDIR /src
COPY . .
ENV PGRX_PG_CONFIG_PATH=/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config
RUN mkdir -p target/pgrx \
    && cargo pgrx package --no-default-features --features "pg${PG_MAJOR}" --pg-config "$PGRX_PG_CONFIG_PATH" --out-dir /out

FROM postgres:${PG_MAJOR}-bookworm
ARG PG_MAJOR
# The certificates that connections with TLS (tls://, nats over TLS) are checked against.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/usr/lib/postgresql/${PG_MAJOR}/lib/ /usr/lib/postgresql/${PG_MAJOR}/lib/
COPY --from=build /out/usr/share/postgresql/${PG_MAJOR}/extension/ /usr/share/postgresql/${PG_MAJOR}/extension/
# What initdb makes a new cluster's postgresql.conf from.
RUN echo "shared_preload_libraries = 'pg_jetstream'" >> /usr/share/postgresql/postgresql.conf.sample
