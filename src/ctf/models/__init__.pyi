from .cache import KeyValueCache as KeyValueCache
from .cluster_head import ClusterMembers as ClusterMembers
from .cluster_head import member_logits as member_logits
from .config import MODEL_SIZES as MODEL_SIZES
from .config import Compute as Compute
from .config import TransformerConfig as TransformerConfig
from .packed import PackedTransformer as PackedTransformer
from .transformer import Transformer as Transformer
