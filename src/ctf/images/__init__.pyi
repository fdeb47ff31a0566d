from .crop import center_crop as center_crop
from .crop import ten_crop as ten_crop
from .image_set import ImageSet as ImageSet
from .image_set import open_images as open_images
from .pixels import to_bytes as to_bytes
from .pixels import to_tensor as to_tensor
from .sheet import contact_sheet as contact_sheet
from .sheet import save_png as save_png
