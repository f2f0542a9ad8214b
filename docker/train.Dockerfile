# GPU image: sft, align, evaluate. Target `train`, or `train-vllm` for faster rollouts. Built by docker/build.sh.
# torch's CUDA wheels bring cuBLAS, cuDNN and NCCL, so the small `base` flavour of the CUDA image is enough.
# Python comes from the same image as in steps.Dockerfile: one interpreter, one constraints file, one behaviour.

ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
ARG CUDA_IMAGE=nvcr.io/nvidia/cuda:13.2.0-base-ubuntu24.04@sha256:36cccda4bebc3b0b1ebe1907ead8169cf144d45df890be871b36b304cf91145a

FROM ${PYTHON_IMAGE} AS python

FROM python AS builder
# hadolint global ignore=DL3042,DL3008
# (pip's cache is a mount, not a layer; the CUDA image is pinned by digest, its packages follow its security updates)
WORKDIR /build
COPY pyproject.toml constraints.txt ./
ARG PIP_EXTRA_ARGS=""
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/understudy \
 && python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && python3 -m pip --python /opt/understudy/bin/python3 install ${PIP_EXTRA_ARGS} \
      --constraint constraints.txt --requirement requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/understudy/bin/python3 install --no-deps --constraint constraints.txt . \
 && python3 -m pip --python /opt/understudy/bin/python3 check \
 && install -d /app && cp -r examples params.yaml LICENSE /app/

# vLLM names the exact torch it was built against; with the constraints in force, a release that wants another torch
# than constraints.txt has is refused by pip instead of replacing it.
FROM builder AS vllm-builder
ARG VLLM_VERSION=""
ARG PIP_EXTRA_ARGS=""
RUN --mount=type=cache,target=/root/.cache/pip \
    test -n "${VLLM_VERSION}" || { echo "Give --build-arg VLLM_VERSION=X built for the torch in constraints.txt." >&2; exit 2; }; \
    python3 -m pip --python /opt/understudy/bin/python3 install ${PIP_EXTRA_ARGS} \
      --constraint constraints.txt "vllm==${VLLM_VERSION}"

FROM builder AS sbom
ARG CYCLONEDX_VERSION=7.5.0
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/cyclonedx \
 && /opt/cyclonedx/bin/python3 -m pip install "cyclonedx-bom==${CYCLONEDX_VERSION}" \
 && install -d /sbom \
 && /opt/cyclonedx/bin/cyclonedx-py environment --output-reproducible --of JSON -o /sbom/python.cdx.json /opt/understudy/bin/python3

FROM vllm-builder AS vllm-sbom
COPY --from=sbom /opt/cyclonedx /opt/cyclonedx
RUN install -d /sbom \
 && /opt/cyclonedx/bin/cyclonedx-py environment --output-reproducible --of JSON -o /sbom/python.cdx.json /opt/understudy/bin/python3

FROM ${CUDA_IMAGE} AS runtime
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG SOURCE=https://example.com/understudy
LABEL org.opencontainers.image.title="understudy train" \
      org.opencontainers.image.description="GPU steps of Understudy" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
# The shared libraries that the copied interpreter links to.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libbz2-1.0 libffi8 liblzma5 libreadline8 libsqlite3-0 libssl3 zlib1g \
 && rm -rf /var/lib/apt/lists/*
COPY --from=python /usr/local /usr/local
RUN ldconfig \
 && install -d /usr/share/sbom \
 && dpkg-query --show --showformat='${Package} ${Version} ${Architecture}\n' > /usr/share/sbom/debian.txt \
 && install -d -o 10001 -g 10001 -m 0770 /var/understudy
# TMPDIR is the mount itself: KFP's executor calls mktemp there, and an empty mount has no folders yet.
ENV PATH=/opt/understudy/bin:${PATH} \
    UNDERSTUDY_GIT_COMMIT=${REVISION} \
    UNDERSTUDY_WORKDIR=/var/understudy \
    HOME=/var/understudy \
    TMPDIR=/var/understudy \
    HF_HOME=/var/understudy/huggingface \
    HF_HUB_OFFLINE=1 \
    TRITON_CACHE_DIR=/var/understudy/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/understudy/inductor \
    MPLCONFIGDIR=/var/understudy/matplotlib \
    DVC_SITE_CACHE_DIR=/var/understudy/dvc-site \
    DVC_NO_ANALYTICS=1 \
    GIT_PYTHON_REFRESH=quiet \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["understudy"]
CMD ["--help"]

FROM runtime AS train-vllm
COPY --from=vllm-sbom /sbom /usr/share/sbom
COPY --from=vllm-builder /opt/understudy /opt/understudy
COPY --from=builder /app /app

FROM runtime AS train
COPY --from=sbom /sbom /usr/share/sbom
COPY --from=builder /opt/understudy /opt/understudy
COPY --from=builder /app /app
