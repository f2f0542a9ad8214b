# CPU image: preflight, ingest, register, notify; the MLflow server, the metrics exporter and the jobs that keep schedules.
# Every write goes below UNDERSTUDY_WORKDIR, so the root file system can be read-only. Built by docker/build.sh.

ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${PYTHON_IMAGE} AS builder
# hadolint global ignore=DL3042
# (pip's cache is a mount of the builder, not a layer; it makes a second build take seconds)
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# The name of an index with CPU builds of torch; the default index serves CUDA builds, which are gigabytes larger.
ARG PIP_EXTRA_ARGS=""
# psycopg2 is for the MLflow server, which runs from this image; everything else is what the project itself declares.
# The interpreter is named explicitly, so that no pip ends in the image.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/understudy \
 && python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && echo psycopg2-binary >> requirements.txt \
 && python3 -m pip --python /opt/understudy/bin/python3 install ${PIP_EXTRA_ARGS} \
      --constraint constraints.txt --requirement requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/understudy/bin/python3 install --no-deps --constraint constraints.txt . \
 && python3 -m pip --python /opt/understudy/bin/python3 check \
 && install -d /app/pipelines && cp -r examples params.yaml gate.yaml LICENSE /app/ \
 && if [ -d pipelines/schedules ]; then cp -r pipelines/schedules /app/pipelines/; fi

FROM builder AS sbom
ARG CYCLONEDX_VERSION=7.5.0
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/cyclonedx \
 && /opt/cyclonedx/bin/python3 -m pip install "cyclonedx-bom==${CYCLONEDX_VERSION}" \
 && install -d /sbom \
 && /opt/cyclonedx/bin/cyclonedx-py environment --output-reproducible --of JSON -o /sbom/python.cdx.json /opt/understudy/bin/python3

FROM ${PYTHON_IMAGE} AS steps
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG SOURCE=https://example.com/understudy
LABEL org.opencontainers.image.title="understudy steps" \
      org.opencontainers.image.description="CPU steps and services of Understudy" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
COPY --from=builder /opt/understudy /opt/understudy
COPY --from=builder /app /app
COPY --from=sbom /sbom /usr/share/sbom
RUN dpkg-query --show --showformat='${Package} ${Version} ${Architecture}\n' > /usr/share/sbom/debian.txt \
 && install -d -o 10001 -g 10001 -m 0770 /var/understudy
# TMPDIR is the mount itself: KFP's executor calls mktemp there, and an empty mount has no folders yet.
ENV PATH=/opt/understudy/bin:${PATH} \
    UNDERSTUDY_GIT_COMMIT=${REVISION} \
    UNDERSTUDY_WORKDIR=/var/understudy \
    HOME=/var/understudy \
    TMPDIR=/var/understudy \
    HF_HOME=/var/understudy/huggingface \
    HF_HUB_OFFLINE=1 \
    MPLCONFIGDIR=/var/understudy/matplotlib \
    DVC_SITE_CACHE_DIR=/var/understudy/dvc-site \
    DVC_NO_ANALYTICS=1 \
    GIT_PYTHON_REFRESH=quiet \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["understudy"]
CMD ["--help"]
