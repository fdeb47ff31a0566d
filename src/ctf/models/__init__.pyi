from .cluster_head import ClusterMembers as ClusterMembers
from .cluster_head import member_logits as member_logits
from .config import MODEL_SIZES as MODEL_SIZES
from .config import TransformerConfig as TransformerConfig
from .likelihood import bits as bits
from .likelihood import token_losses as token_losses
from .likelihood import token_scores as token_scores
from .transformer import Transformer as Transformer
