"""Meta-transfer learning on frozen pretrained networks.

A generator reads a task's support set and emits scale and shift vectors for a frozen timm or transformers backbone, a
short inner loop refines them, and the result is a plain checkpoint.

These are the names that most programs need; the rest lives in the sub-packages: :mod:`mtl.metagrad` (meta-gradients of
any bilevel problem), :mod:`mtl.networks`, :mod:`mtl.fewshot`, :mod:`mtl.data`, :mod:`mtl.serving`,
:mod:`mtl.transfer`, :mod:`mtl.planning` and :mod:`mtl.tools`.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from mtl.lazy import lazy

# A name loads its module when it is first asked for: torch, timm and transformers take seconds, and a program that
# needs the meta-gradients alone waits for torch alone. A name that is added here stands in the three lists below.
HOMES = {
    "mtl": "cli data episode fewshot items metagrad networks planning serving tools transfer",
    "mtl.data": "Alternating ClassTasks DocstringTasks GlyphTasks open_images open_texts",
    "mtl.episode": "Episode Examples Inputs TaskSource stack_by_shape",
    "mtl.fewshot": (
        "Adapted AdaptedTask CentredRidge ChannelWise Cosine Linear ManyAdapted MetaLearner NearestClassMean "
        "Ridge Static SupportConditioned TaskCode TrainingConfig adapt adapt_many affinity baselines evaluate export "
        "from_pretrained learner_method load_examples load_generator load_task push_to_hub save_pretrained train"
    ),
    "mtl.metagrad": "Exact FirstOrder InnerAdam InnerProblem InnerSGD Rematerialised Windowed solve",
    "mtl.networks": "Backbone load_backbone shard",
    "mtl.serving": "Server",
    "mtl.tools": "Comparison",
}
if TYPE_CHECKING:
    from mtl import data, fewshot, metagrad, networks, serving, tools
    from mtl.data import Alternating, ClassTasks, DocstringTasks, GlyphTasks, open_images, open_texts
    from mtl.episode import Episode, Examples, Inputs, TaskSource, stack_by_shape
    from mtl.fewshot import (
        Adapted,
        AdaptedTask,
        CentredRidge,
        ChannelWise,
        Cosine,
        Linear,
        ManyAdapted,
        MetaLearner,
        NearestClassMean,
        Ridge,
        Static,
        SupportConditioned,
        TaskCode,
        TrainingConfig,
        adapt,
        adapt_many,
        affinity,
        baselines,
        evaluate,
        export,
        from_pretrained,
        learner_method,
        load_examples,
        load_generator,
        load_task,
        push_to_hub,
        save_pretrained,
        train,
    )
    from mtl.metagrad import Exact, FirstOrder, InnerAdam, InnerProblem, InnerSGD, Rematerialised, Windowed, solve
    from mtl.networks import Backbone, load_backbone, shard
    from mtl.serving import Server
    from mtl.tools import Comparison
else:
    __getattr__, __dir__ = lazy(__name__, HOMES)

__version__ = version("mtl")

__all__ = [  # noqa: RUF022 (grouped by what people do)
    # networks
    "Backbone",
    "load_backbone",
    "shard",
    # data
    "Alternating",
    "ClassTasks",
    "DocstringTasks",
    "Episode",
    "Examples",
    "GlyphTasks",
    "Inputs",
    "TaskSource",
    "open_images",
    "open_texts",
    "stack_by_shape",
    # generators and heads
    "CentredRidge",
    "ChannelWise",
    "Cosine",
    "Linear",
    "NearestClassMean",
    "Ridge",
    "Static",
    "SupportConditioned",
    "TaskCode",
    # learning, adapting, keeping
    "Adapted",
    "AdaptedTask",
    "ManyAdapted",
    "MetaLearner",
    "TrainingConfig",
    "adapt",
    "adapt_many",
    "export",
    "from_pretrained",
    "load_examples",
    "load_generator",
    "load_task",
    "push_to_hub",
    "save_pretrained",
    "train",
    # serving
    "Server",
    # comparing
    "Comparison",
    "affinity",
    "baselines",
    "evaluate",
    "learner_method",
    # meta-gradients
    "Exact",
    "FirstOrder",
    "InnerAdam",
    "InnerProblem",
    "InnerSGD",
    "Rematerialised",
    "Windowed",
    "solve",
    # sub-packages
    "data",
    "fewshot",
    "metagrad",
    "networks",
    "serving",
    "tools",
]
