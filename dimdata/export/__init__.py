"""A draw as files that others read: image folders, safetensors, `.npz` and WebDataset shards."""

from dimdata.export.run import Exported, export

__all__ = ["Exported", "export"]
