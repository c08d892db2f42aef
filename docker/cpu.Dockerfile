# avllm on CPUs:  docker build -f docker/cpu.Dockerfile -t avllm .
#                 docker run --rm -v "$PWD:/work" avllm doctor
FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 10001 avllm \
    && mkdir /work \
    && chown avllm /work
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '/src[featurize,curate,train,serve,export,s3]' \
    && rm -rf /src
USER 10001
WORKDIR /work
ENTRYPOINT ["avllm"]
