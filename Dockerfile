# syntax=docker/dockerfile:1.7
# An SGLang server with KV budgets. docs/deploy/docker.md says how to run it.
#
#   docker build -t sglang-longflow:0.3.0 .                       for NVIDIA GPUs, CUDA 13
#   docker build -t sglang-longflow:0.3.0-cpu --target cpu .      for trying it out, without a GPU
#
# A pip configuration (a mirror, a proxy) can be handed in: --secret id=pip,src=pip.conf

# SGLang 0.5.23 with torch 2.14 for CUDA 13 (driver 580 or newer). By tag alone: its digest is not
# known yet, and scripts/release_notes.py refuses a release without it.
ARG SGLANG_IMAGE=lmsysorg/sglang:v0.5.23
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm@sha256:593bd06efe90efa80dc4eee3948be7c0fde4134606dd40d8dd8dbcade98e669c

# ---- the plugin's wheel
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY requirements/constraints.txt requirements/constraints.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir -c requirements/constraints.txt setuptools
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY deploy deploy
COPY kernels kernels
COPY sglang_longflow sglang_longflow
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index --wheel-dir /wheel .

# ---- for trying it out: SGLang from PyPI at the pinned versions, CUDA libraries included (9 GB),
# because SGLang's own packages are built against that torch
FROM ${PYTHON_IMAGE} AS cpu
ARG VERSION=0.3.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sglang-longflow" \
      org.opencontainers.image.description="SGLang with a fixed KV budget per request (CPU, for trying it out)" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"

# tini: signals and orphans. curl: the health check. g++: what torch compiles. libnuma1: sglang-kernel.
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl g++ libnuma1 tini \
    && rm -rf /var/lib/apt/lists/*

COPY requirements/constraints.txt pyproject.toml /tmp/build/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -c 'import tomllib; print(*tomllib.load(open("/tmp/build/pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > /tmp/build/requirements.txt \
    && pip install --no-cache-dir -c /tmp/build/constraints.txt -r /tmp/build/requirements.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-cache-dir --no-deps --no-index /tmp/wheel/*.whl \
    && rm -r /tmp/build /tmp/wheel

RUN groupadd --gid 1000 longflow \
    && useradd --uid 1000 --gid 1000 --home-dir /cache --no-create-home --shell /usr/sbin/nologin longflow \
    && install -d -o longflow -g longflow /cache \
    && install -d /etc/longflow
COPY configs/default.yaml /etc/longflow/config.yaml
# Everything that is written goes to /cache and /tmp: the rest may be mounted read-only.
ENV HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    FLASHINFER_WORKSPACE_BASE=/cache/flashinfer \
    SGLANG_CACHE_DIR=/cache/sglang \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /cache
# Without the device: an image is built where it is not run.
RUN longflow doctor --no-device
VOLUME ["/cache"]
EXPOSE 30000
# SGLang's /health generates a token, behind whatever is running: it may take long under load.
HEALTHCHECK --interval=30s --timeout=30s --start-period=20m --start-interval=5s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "--max-time", "25", "http://127.0.0.1:30000/health"]
# longflow serve passes it on; SGLang then finishes what it has accepted.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "longflow"]
CMD ["serve", "--config", "/etc/longflow/config.yaml", "--host", "0.0.0.0", "--port", "30000"]

# ---- for GPUs: SGLang's own image, whose packages stay as they are
FROM ${SGLANG_IMAGE} AS gpu
ARG VERSION=0.3.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sglang-longflow" \
      org.opencontainers.image.description="SGLang with a fixed KV budget per request" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"

USER 0
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl tini \
    && rm -rf /var/lib/apt/lists/*

# Only what the image lacks is installed, at our pins. pip ends with an error where its SGLang or
# torch is another one than the plugin's.
COPY requirements/constraints.txt /tmp/build/
COPY --from=wheel /wheel /tmp/wheel
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    grep -E '^(rich|markdown-it-py|mdurl|Pygments)==' /tmp/build/constraints.txt > /tmp/build/ours.txt \
    && python3 -m pip install --no-cache-dir --break-system-packages -r /tmp/build/ours.txt \
    && python3 -m pip install --no-cache-dir --break-system-packages --no-index /tmp/wheel/*.whl \
    && rm -r /tmp/build /tmp/wheel

# Ubuntu's images have a user of uid 1000 already.
RUN if id -u ubuntu > /dev/null 2>&1; then userdel --remove ubuntu; fi \
    && groupadd --gid 1000 longflow \
    && useradd --uid 1000 --gid 1000 --home-dir /cache --no-create-home --shell /usr/sbin/nologin longflow \
    && install -d -o longflow -g longflow /cache \
    && install -d /etc/longflow
COPY configs/default.yaml /etc/longflow/config.yaml
ENV HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    FLASHINFER_WORKSPACE_BASE=/cache/flashinfer \
    SGLANG_CACHE_DIR=/cache/sglang \
    CUDA_CACHE_PATH=/cache/cuda \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /cache
RUN longflow doctor --no-device
VOLUME ["/cache"]
EXPOSE 30000
HEALTHCHECK --interval=30s --timeout=30s --start-period=20m --start-interval=5s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "--max-time", "25", "http://127.0.0.1:30000/health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "longflow"]
CMD ["serve", "--config", "/etc/longflow/config.yaml", "--host", "0.0.0.0", "--port", "30000"]
