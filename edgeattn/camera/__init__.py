"""The live loop: sources of frames, the pipeline over them, and where its results go."""

from edgeattn.camera.files import Folder, Video
from edgeattn.camera.frame import Frame, Source
from edgeattn.camera.pipeline import Pipeline, Result
from edgeattn.camera.source import Camera, open_source
from edgeattn.camera.state import Status

__all__ = ["Camera", "Folder", "Frame", "Pipeline", "Result", "Source", "Status", "Video", "open_source"]
