# syntax=docker/dockerfile:1
# The GPU environment: NVIDIA's PyTorch with CUDA and Transformer Engine, plus the pinned stack.
#
# Base: the README of nemo_toolkit 2.7.3 ("NGC PyTorch container", https://pypi.org/project/nemo-toolkit/2.7.3/)
# names 25.09-py3 as the container to start from, for 25.09 (NeMo 2.6.0) and later. It holds Python
# 3.12 and its own builds of torch and Transformer Engine, which megatron-core 0.15.3 uses as they
# are (it asks for their versions at run time). Newer bases: --build-arg BASE_IMAGE=…
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:25.09-py3
FROM ${BASE_IMAGE}

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# NGC images pin every package through PIP_CONSTRAINT; constraints/gpu.txt takes its place, and
# leaves torch, Transformer Engine and what else is built for this image alone.
ENV PIP_CONSTRAINT="" \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# git-lfs: models and datasets of the hub are cloned with it. sudo: the user below may add packages.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends git-lfs sudo \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace/dct-vl

# Only what decides about the packages, so that a change of the code does not install them again.
COPY pyproject.toml setup.py README.md ./
COPY constraints ./constraints
COPY launch/setup_env.sh ./launch/setup_env.sh
RUN DCT_VL_PROFILE=gpu bash launch/setup_env.sh

# The launch scripts use this Python as it is, even where the mounted repository has a .venv of the
# host. The code is found through PYTHONPATH: it was not there yet when its packages were installed.
ENV DCT_VL_PYTHON=python3 \
    PYTHONPATH=/workspace/dct-vl
COPY . .

# Not root: files written to the mounted folders belong to whoever started the container. A user id
# that the base image already has (Ubuntu's own 1000) is used under its name there; 0 stays root.
ARG USER_ID=1000
ARG GROUP_ID=1000
RUN if [[ "${USER_ID}" != 0 ]]; then \
        getent group "${GROUP_ID}" > /dev/null || groupadd --gid "${GROUP_ID}" dct; \
        getent passwd "${USER_ID}" > /dev/null \
            || useradd --uid "${USER_ID}" --gid "${GROUP_ID}" --no-log-init --create-home \
                --shell /bin/bash dct; \
        echo "$(getent passwd "${USER_ID}" | cut -d: -f1) ALL=(ALL) NOPASSWD:ALL" > /etc/sudoers.d/dct; \
        chmod 0440 /etc/sudoers.d/dct; \
    fi
USER ${USER_ID}:${GROUP_ID}

CMD ["bash"]
