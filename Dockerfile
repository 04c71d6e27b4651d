# The flow of `make demo` in a container:
#   docker build -t stlm-edge . && docker run --rm -v "$PWD/runs:/work/runs" stlm-edge
FROM python:3.11-slim-bookworm

RUN apt-get update -q && apt-get install -qy --no-install-recommends make git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /work
COPY . .
RUN make .venv/installed
CMD ["make", "demo"]
