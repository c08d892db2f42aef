"""The on-disk contract: corpus plan, columns, shards, conversations, order. numpy, no torch."""

from store.arrivals import Candidate, make_key
from store.column import Column, create_column, list_columns, open_column
from store.conversation import (
    MODALITIES,
    Conversation,
    Modality,
    Outline,
    Sense,
    Turn,
    check_conversations,
    list_conversations,
    load_conversations,
    load_outline,
    save_conversations,
)
from store.corpus import Corpus
from store.errors import DamagedError, UserError
from store.facts import longest_text
from store.items import Kind, MediaItem, Part
from store.mapped import MappedConversations
from store.names import is_missing_folder, means_folder
from store.order import ORDER_VERSION, Mixture, Order, Phase, Schedule, places_of
from store.reader import Arrays, ColumnReader
from store.settings import Settings, load_settings, parse_settings
from store.shard import ShardWriter
from store.sidecar import FAILURE_CODES, Failure, FailureCode, Sidecar
from store.spec import ColumnSpec, Feature, canonical_json
from store.storage import Storage
from store.stream import ItemRows, Replacement, Stream, StreamBatch
from store.verify import Checked, ColumnStats, column_stats, verify_column

__all__ = [
    "FAILURE_CODES",
    "MODALITIES",
    "ORDER_VERSION",
    "Arrays",
    "Candidate",
    "Checked",
    "Column",
    "ColumnReader",
    "ColumnSpec",
    "ColumnStats",
    "Conversation",
    "Corpus",
    "DamagedError",
    "Failure",
    "FailureCode",
    "Feature",
    "ItemRows",
    "Kind",
    "MappedConversations",
    "MediaItem",
    "Mixture",
    "Modality",
    "Order",
    "Outline",
    "Part",
    "Phase",
    "Replacement",
    "Schedule",
    "Sense",
    "Settings",
    "ShardWriter",
    "Sidecar",
    "Storage",
    "Stream",
    "StreamBatch",
    "Turn",
    "UserError",
    "canonical_json",
    "check_conversations",
    "column_stats",
    "create_column",
    "is_missing_folder",
    "list_columns",
    "list_conversations",
    "load_conversations",
    "load_outline",
    "load_settings",
    "longest_text",
    "make_key",
    "means_folder",
    "open_column",
    "parse_settings",
    "places_of",
    "save_conversations",
    "verify_column",
]
