"""Share generators and adapted tasks on the Hugging Face hub, with a card that is written from the run."""

from mtl.fewshot.sharing.model_card import model_card
from mtl.fewshot.sharing.pushing import push_to_hub

__all__ = ["model_card", "push_to_hub"]
