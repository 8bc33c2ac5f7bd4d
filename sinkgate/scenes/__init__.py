"""The shapes world: scenes, their pictures, and questions about them."""

from sinkgate.scenes.questions import KINDS, Question
from sinkgate.scenes.scene import Scene, SceneObject

__all__ = ["KINDS", "Question", "Scene", "SceneObject"]
