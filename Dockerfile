# One image for every worker kind; the command says which: `worker amn`, `worker fallback`, ...
FROM python:3.11-slim AS build

# The package holds no models: those of amn-queue-models serve where no others are mounted.
# The loops of amn/kernel/kernel.c need a compiler; the image takes the wheel, and no compiler. They ask the
# processor what it can when they run, so the wheel fits any of the same architecture.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY amn amn
COPY producer producer
COPY workers workers
COPY ops ops
COPY artifacts artifacts
COPY docs/runbook.md docs/
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . ./artifacts

FROM python:3.11-slim

# TORCH: on x86 the ordinary wheel brings CUDA along. For a small image let pip prefer a CPU build:
# docker build --build-arg PIP_EXTRA_INDEX_URL=<index of CPU builds> .
ARG TORCH=torch==2.13.0
ARG PIP_EXTRA_INDEX_URL=

WORKDIR /app
RUN useradd --system --uid 10001 --home-dir /app amn \
    && pip install --no-cache-dir "$TORCH"
COPY --from=build /wheels /wheels
# An image without the loops would serve, slowly: it is not made.
RUN pip install --no-cache-dir --find-links /wheels 'amn-queue[ops,otel]' \
    && python -c 'from amn.kernel.bindings import WHY; assert WHY in ("", "processor"), WHY'

# Weights of your own come from outside, read-only, so that a new model needs no new image: mount them at
# /app/artifacts, or name their folder by AMN_ARTIFACTS. Without either, the shipped models serve.
ENV PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
USER amn
ENTRYPOINT ["amn"]
CMD ["--help"]
