"""Hugging Face directories to networks and tokenizers, with errors that say what to change."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from rlhf_ray.config.checks.files import MERGE_FIRST, is_adapter
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.coherence import CONFIG_FILE, check_coherence, check_weight_shapes
from rlhf_ray.models.facts import checkpoint_shapes, facts_of
from rlhf_ray.models.heads import ENCODERS, is_encoder
from rlhf_ray.models.lora import keep_layout, quantization_settings
from rlhf_ray.models.score_statistics import ScoreStatistics
from rlhf_ray.models.tokenizer_texts import as_in_its_file, save_beside

COMMON_TYPES = ("gemma2", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Some of the architectures that can be policy, critic and reward model."""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
"""At least one of them holds a tokenizer's words."""


def load_policy(model: ModelConfig, in_4bit: bool = False) -> nn.Module:
    """Load a causal language model; `in_4bit` keeps its linear layers in 4 bits.

    Raises:
        BadInput: missing directory, not a model, no safetensors, an architecture that is not supported here.
    """
    from transformers import AutoModelForCausalLM

    config = policy_config(model)
    network = _from_pretrained(AutoModelForCausalLM, model, config, in_4bit)
    output = network.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise BadInput(
            f"{model.path}: architecture {config.model_type} is not supported: it has no linear output layer"
        )
    return network


def load_scalar(
    model: ModelConfig,
    seed: int,
    per_token: bool = False,
    in_4bit: bool = False,
    units: ScoreStatistics | None = None,
) -> nn.Module:
    """Load a sequence classifier of one label: a reward model, or a critic.

    From a reward model it keeps the head; from a language model it makes one, drawn by `seed`.

    Args:
        model: which one.
        seed: of a new head.
        per_token: a critic, which has a scalar at each token that sees none of the later ones.
        in_4bit: load the weights quantised.
        units: of the rewards that a critic foretells, where it begins as the model that gives them: the head that it
            keeps then speaks in these. None: as it is.

    Raises:
        BadInput: missing directory, not a model, a classifier of several labels, an unsupported architecture.
    """
    from transformers import AutoModelForSequenceClassification

    config = scalar_config(model, per_token=per_token)
    classifier = _is_classifier(config)
    config.num_labels = 1
    # The parts of an encoder's head are drawn while it loads.
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = _from_pretrained(AutoModelForSequenceClassification, model, config, in_4bit)
    if is_encoder(config):
        return network
    check_head(model.path, network)
    if not classifier:
        initialize_head(network.score, seed)
    elif units is not None:
        _rescale_head(network.score, units)
    return network


def policy_config(model: ModelConfig) -> Any:
    """Read the configuration of a causal language model, after checks that need no weights in memory.

    Raises:
        BadInput: missing directory, not a language model, no safetensors, an architecture that is not supported here.
    """
    config = read_model_config(model.path, model.trust_remote_code)
    if _is_classifier(config):
        raise BadInput(
            f"{model.path}: is a classifier ({', '.join(config.architectures)}), such as a reward model, and not a "
            "language model"
        )
    _check_files(model, config)
    return config


def check_head(path: str, network: Any) -> None:
    """Check that a sequence classifier has a scalar at each token, or is an encoder.

    Raises:
        BadInput: its architecture is another.
    """
    if not is_encoder(network.config) and not isinstance(getattr(network, "score", None), nn.Linear):
        encoders = ", ".join(sorted(ENCODERS))
        why = f"its classifier has no `score`, and it is none of the encoders {encoders}"
        raise unsupported(path, network.config, why)


def outline(model: ModelConfig, scalar: bool = False) -> Any:
    """Build a network on torch's meta device: layers with shapes; no weights are read or made. It is shared.

    Raises:
        BadInput: as `policy_config` and `scalar_config`.
    """
    (scalar_config if scalar else policy_config)(model)
    facts = facts_of(model.path, model.trust_remote_code)
    kind = "classifier" if scalar else "language model"
    try:
        network = facts.classifier if scalar else facts.language_model
    except Exception as error:  # whatever layers say to sizes that do not fit one another
        raise BadInput(f"{model.path}: no network follows from its config.json: {_first_line(error)}") from error
    if kind not in facts.sound:
        check_weight_shapes(model.path, network, checkpoint_shapes(model.path))
        facts.sound.add(kind)
    return network


def renamed_weights(model: ModelConfig, network: Any) -> list[str]:
    """List weights named differently while a model trains than in its checkpoint, in alphabetical order.

    Transformers makes one tensor of the experts of a layer, for instance, and many again when it saves.

    Args:
        model: which one.
        network: its `outline`.
    """
    from transformers.core_model_loading import revert_weight_conversion

    trained = dict(network.named_parameters())
    saved = checkpoint_shapes(model.path) or revert_weight_conversion(network, trained)
    return sorted(trained.keys() - saved.keys())


def scalar_config(model: ModelConfig, must_have_head: bool = False, per_token: bool = False) -> Any:
    """Read the configuration of a network that can become a reward model or a critic, likewise checked.

    Args:
        model: which one.
        must_have_head: it must be a reward model already. A causal language model would load too, with a scalar head of
            random weights.
        per_token: it must have a scalar at each token, as a critic has.

    Raises:
        BadInput: missing directory, not a model, a classifier of several labels, no safetensors; no reward model.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = read_model_config(model.path, model.trust_remote_code)
    if per_token and is_encoder(config):
        raise BadInput(
            f"{model.path}: is an encoder ({config.model_type}), which can be a reward model but no critic: each "
            "of its tokens sees the later ones; start the critic from the policy, or from a decoder"
        )
    if _is_classifier(config):
        if config.num_labels != 1:
            raise BadInput(
                f"{model.path}: a reward model or critic has one label, this classifier has {config.num_labels}"
            )
    elif must_have_head:
        raise BadInput(
            f"{model.path}: is no reward model (a sequence classifier) but "
            f"{', '.join(config.architectures or []) or 'unknown'}; train one with `rlhf reward`"
        )
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not model.trust_remote_code:
        raise BadInput(
            f"{model.path}: cannot be a reward model or critic, for Transformers has no sequence classifier of "
            f"architecture {config.model_type}; begin from another one, such as {', '.join(COMMON_TYPES)}"
        )
    _check_files(model, config)
    return config


def _is_classifier(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _check_files(model: ModelConfig, config: Any) -> None:
    """Look for the weight files of a model, and whether its configuration agrees with them, once in a process."""
    facts = facts_of(model.path, model.trust_remote_code)
    if "files" not in facts.sound:
        _check_weights(model.path)
        check_coherence(model.path, config, checkpoint_shapes(model.path))
        facts.sound.add("files")


def _check_weights(path: str) -> None:
    """Look for the safetensors files of a local directory, all of them where an index lists them."""
    directory = Path(path)
    if not directory.is_dir():
        return
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in names if not (directory / name).is_file())
        if missing:
            raise BadInput(
                f"{path}: {len(missing)} of {len(names)} weight files are missing, the first is {missing[0]}"
            )
    elif not any(directory.glob("*.safetensors")):
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern))
        hint = f", only {', '.join(others)}; save it anew by save_pretrained of Transformers" if others else ""
        raise BadInput(f"{path}: holds no weights in safetensors{hint}")
    for file in sorted(directory.glob("*.safetensors")):
        try:
            # Reads the header alone, which says how long the file must be.
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file}: is damaged, or was not copied to its end ({error}); fetch it again") from error


def unsupported(path: str, config: Any, why: str) -> BadInput:
    """Return the refusal of a model for what its architecture is."""
    return BadInput(f"{path}: architecture {config.model_type} is not supported: {why}")


def initialize_head(head: nn.Linear, seed: int) -> None:
    """Draw a new scalar head: normal with standard deviation 1 / sqrt(width + 1) (Stiennon et al. 2020)."""
    generator = torch.Generator().manual_seed(seed)
    width = head.in_features
    values = torch.randn(head.weight.shape, generator=generator) / (width + 1) ** 0.5
    with torch.no_grad():
        head.weight.copy_(values)


def _rescale_head(head: nn.Linear, units: ScoreStatistics) -> None:
    """Make a head give (score - mean) / deviation; one without bias, as most are, only score / deviation."""
    with torch.no_grad():
        head.weight /= units.std
        if head.bias is not None:
            head.bias.sub_(units.mean).div_(units.std)


def load_tokenizer(model: ModelConfig) -> Any:
    """Load the model's tokenizer, padding on the right, with the config's chat template if any. It is shared.

    Raises:
        BadInput: no tokenizer there, one without an EOS token, or one that cannot keep texts as its file does.
    """
    tokenizer, _ = _faithful_tokenizer(model)
    return tokenizer


@contextmanager
def engine_tokenizer(model: ModelConfig) -> Iterator[str | None]:
    """Give the directory or hub name from which an engine gets the tokenizer that `load_tokenizer` gives.

    None is the model's own. A directory that had to be made is gone afterwards.

    Raises:
        BadInput: as `load_tokenizer`.
    """
    tokenizer, as_saved = _faithful_tokenizer(model)
    if as_saved:
        yield model.tokenizer
        return
    with tempfile.TemporaryDirectory() as folder:
        save_beside(tokenizer, model.path, folder)
        yield folder


def _faithful_tokenizer(model: ModelConfig) -> tuple[Any, bool]:
    """Load the tokenizer; tell whether Transformers makes the same of its directory."""
    facts = facts_of(model.tokenizer or model.path, model.trust_remote_code)
    # What lies beside it has a word in it; and each template has a tokenizer, which carries it.
    key = (facts_of(model.path, model.trust_remote_code), model.chat_template)
    if key not in facts.tokenizers:
        facts.tokenizers[key] = _made_tokenizer(model)
    tokenizer, as_saved = facts.tokenizers[key]
    if model.chat_template is not None:
        tokenizer.chat_template = _template_text(model.chat_template)
    return tokenizer, as_saved


def _made_tokenizer(model: ModelConfig) -> tuple[Any, bool]:
    path = model.tokenizer or model.path
    loaded = _loaded_tokenizer(path, model.trust_remote_code)
    tokenizer = as_in_its_file(loaded, path, model.path, model.trust_remote_code)
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        # An encoder's texts begin with CLS and end with SEP.
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise BadInput(f"{path}: the tokenizer has no EOS token; set `eos_token` in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        # Padding never enters a computation here; the id only has to exist.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer, tokenizer is loaded


def _loaded_tokenizer(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    _check_directory(path, has_tokenizer=True)
    if Path(path).is_dir() and not any(found for name in TOKENIZER_FILES for found in Path(path).glob(name)):
        # Transformers would make one without words from the model's type alone.
        raise BadInput(f"{path}: holds no tokenizer; save it there beside the model (tokenizer.save_pretrained)")
    try:
        # Not by mistral-common, which knows no chat template, where a Mistral has files of both kinds.
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, mistral_format=False)
    except Exception as error:  # as in read_model_config
        if (Path(path) / CONFIG_FILE).is_file():
            # It is read on the way to the tokenizer, and what is wrong with it has a message of its own.
            read_model_config(path, trust_remote_code)
        raise BadInput(f"{path}: {_unloaded(path, 'no usable tokenizer')}: {_first_line(error)}") from error


def _template_text(template: str) -> str:
    # A file name has no line break and is short; stat would refuse a long template as a name.
    if "\n" not in template and len(template) < 256 and Path(template).is_file():
        return Path(template).read_text(encoding="utf-8")
    if "{" not in template:
        raise BadInput(f"model.chat_template: {template!r} is neither a file nor a Jinja template")
    return template


def read_model_config(path: str, trust_remote_code: bool) -> Any:
    """Return the Transformers configuration of a model, a copy of the caller's own.

    Raises:
        BadInput: there is none that can be read.
    """
    _check_directory(path)
    try:
        return deepcopy(facts_of(path, trust_remote_code).config)
    except Exception as error:  # Transformers says by any kind what it cannot read
        file = Path(path) / CONFIG_FILE if Path(path).is_dir() else path
        raise BadInput(f"{file}: {_unloaded(path, 'not a model that can be loaded')}: {_first_line(error)}") from error


def _check_directory(path: str, has_tokenizer: bool = False) -> None:
    """Say clearly what is wrong with a path before the hub is asked for a repository of that name."""
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") != 1
    if Path(path).is_dir():
        if not has_tokenizer and is_adapter(Path(path)):
            raise BadInput(f"{path}: {MERGE_FIRST.format(adapter=path)}")
        if not (Path(path) / "config.json").is_file() and not (Path(path) / "tokenizer_config.json").is_file():
            raise BadInput(f"{path}: not a model directory: it has no config.json")
    elif Path(path).exists():
        raise BadInput(f"{path}: is a file, not a model directory")
    elif looks_local:
        raise BadInput(f"{path}: no such model directory")


def _from_pretrained(auto: Any, model: ModelConfig, config: Any, in_4bit: bool) -> Any:
    from transformers import AutoModelForSequenceClassification

    dtype = getattr(torch, model.dtype)
    scalar = auto is AutoModelForSequenceClassification
    quantized = {"quantization_config": quantization_settings(dtype, scalar)} if in_4bit else {}
    try:
        network = auto.from_pretrained(
            model.path,
            config=config,
            dtype=dtype,
            attn_implementation=model.attention,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            **quantized,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(f"{model.path}: cannot be loaded with {model.attention}: {_first_line(error)}") from error
    if in_4bit:
        keep_layout(network)
    return network


def _unloaded(path: str, what: str) -> str:
    """Say what is wrong with a directory, or that the hub does not give a model of that name."""
    return what if Path(path).is_dir() else "no such directory, and not loaded from the hub"


def _first_line(error: BaseException) -> str:
    text = json.dumps(str(error)) if not str(error).strip() else str(error).strip()
    first, *others = text.splitlines()
    # What Transformers says of a wrong value stands below the line that names the key.
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first
