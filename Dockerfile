# docker build --tag darner . && docker run --publish 127.0.0.1:22133:22133 --volume darner:/var/lib/darner darner

FROM python:3.13-slim-bookworm AS build
# The compiler is the one of the base image's Debian.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv /opt/darner && /opt/darner/bin/pip install --no-cache-dir '/src[metrics,nats]'

FROM python:3.13-slim-bookworm
COPY --from=build /opt/darner /opt/darner
RUN groupadd --system --gid 22133 darner \
    && useradd --system --uid 22133 --gid darner --home-dir /var/lib/darner --shell /usr/sbin/nologin darner \
    && install --directory --owner=darner --group=darner --mode=0700 /var/lib/darner
USER 22133
VOLUME /var/lib/darner
EXPOSE 22133
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["/opt/darner/bin/python", "-c", "import socket; s = socket.create_connection(('127.0.0.1', 22133), 2); s.sendall(b'version\\r\\n'); assert s.recv(64).startswith(b'VERSION ')"]
# Options go behind the image's name. 0.0.0.0 is every address of the container; --publish decides who can reach it.
ENTRYPOINT ["/opt/darner/bin/darner", "--data", "/var/lib/darner", "--host", "0.0.0.0"]
