"""What type checkers are to know of the names that __init__.py loads when they are first asked for."""

from vit_dist.data.batch import Sample as Sample
from vit_dist.data.images import DecodeError as DecodeError
from vit_dist.data.standalone import open_stream as open_stream
from vit_dist.data.standalone_stream import Stream as Stream
from vit_dist.data.standalone_stream import StreamBatch as StreamBatch

__version__: str
