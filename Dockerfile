# syntax=docker/dockerfile:1
# potstill in a container, for the CPU or for CUDA; see docs/command-line.md. Nothing secret is needed to build it: the keys
# of endpoints are given when it runs, as environment variables that the recipe names.

FROM python:3.12-slim AS build
# Where other builds of torch than the default lie, which brings CUDA on Linux: PyTorch's index of CPU builds, say.
ARG TORCH_INDEX=
ARG EXTRAS=hub
WORKDIR /source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/potstill
ENV PATH=/opt/potstill/bin:$PATH
COPY constraints.txt ./
# torch first and alone: its builds differ by index, not by version.
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
RUN pip install -c constraints.txt ".[$EXTRAS]"

FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/potstill /opt/potstill
# Any user may run it, with a home or without one, on a file system that is read-only but for the run's folder and /tmp.
ENV PATH=/opt/potstill/bin:$PATH \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    PYTHONDONTWRITEBYTECODE=1
RUN useradd --uid 1000 --create-home --home-dir /home/potstill potstill && mkdir /data && chown potstill /data
USER potstill
WORKDIR /data
HEALTHCHECK NONE
ENTRYPOINT ["tini", "--", "potstill"]
CMD ["--help"]
