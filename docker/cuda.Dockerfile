# avllm on GPUs:  docker build -f docker/cuda.Dockerfile -t avllm:cuda .
#                 docker run --rm --gpus all --ipc=host -v "$PWD:/work" avllm:cuda doctor
# The development image has nvcc, which DeepSpeed's offloaded optimizer compiles with.
ARG CUDA=13.2.0
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/avllm \
    && useradd --create-home --uid 10001 avllm \
    && mkdir /work \
    && chown avllm /work
ENV PATH=/opt/avllm/bin:$PATH
COPY . /src
RUN pip install --no-cache-dir '/src[featurize,curate,train,serve,export,s3,track]' \
    && rm -rf /src
USER 10001
WORKDIR /work
ENTRYPOINT ["avllm"]
