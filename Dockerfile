# dictserve for a GPU box. On x86-64, PyPI's torch 2.13.0 brings its own CUDA libraries; the host needs only the
# driver and the NVIDIA container toolkit. For a CPU image, name an index with CPU builds:
#   docker build --build-arg TORCH_INDEX=… .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
# What is installed beside the service: traces; add postgres and objects for several replicas.
ARG EXTRAS=otel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/dictserve
ENV PATH=/opt/dictserve/bin:$PATH
WORKDIR /src

# Torch alone first: the largest layer, and the one that changes least.
COPY constraints.txt ./
RUN python3 -m pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "${TORCH}"

COPY pyproject.toml README.md ./
COPY app app
COPY core core
RUN python3 -m pip install --constraint constraints.txt ".[${EXTRAS}]"

# Compile the kernels now, beside their sources, rather than at every start; for all levels of x86-64: the machine that
# runs this may have another than the one that builds it.
RUN cd / && python3 -m core.warm --every-level


FROM ${BASE}
# Numba's threads need the OpenMP runtime, and Triton, which is there on a GPU, a C compiler; slim images lack both.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/dictserve /opt/dictserve
RUN mkdir /models && chown 10001:10001 /models
ENV PATH=/opt/dictserve/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/tmp/dictserve-kernels \
    TRITON_CACHE_DIR=/tmp/dictserve-triton \
    DICTSERVE_HOST=0.0.0.0 \
    DICTSERVE_PORT=8000 \
    DICTSERVE_STORE=/models
USER 10001:10001
WORKDIR /tmp
VOLUME /models
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ['DICTSERVE_PORT']}/readyz\", timeout=4)"]
ENTRYPOINT ["dictserve"]
CMD ["serve"]
