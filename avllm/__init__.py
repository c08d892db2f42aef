"""avllm: train and ask an audio-visual LLM from features that were computed once."""

__version__ = "0.1.0"

PACKAGES = {
    "featurize": "media files -> frozen encoders -> columns of a store, on one machine or as Ray jobs",
    "store": "list, verify, export, import, merge and send what a store holds",
    "curate": "captions of a store -> verified instructions, by outside LLMs",
    "trainer": "columns and conversations -> projectors and LLM",
    "serve": "a trained checkpoint: chat, an OpenAI-style server, benchmarks",
    "ablate": "vary one thing at a time, over features that are there",
}
