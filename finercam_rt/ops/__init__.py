"""The kernels by themselves: `cam` makes a raw map, `render` makes it visible, `status` says what it is worth.
`rank`, `remove` and `mask` make perturbed copies of images, `preprocess` makes photographs a classifier's batch, `seed`
what its gradients are asked for.

Arrays come in from NumPy or from any framework by DLPack, on the CPU or on a CUDA device, with any strides. Results
come back as NumPy arrays, as torch tensors where the first argument is one, and for other CUDA input as arrays that
speak DLPack and __cuda_array_interface__, and order the work with the stream of whoever reads them.
On a CUDA device the kernels are queued on `stream` (a cudaStream_t as an integer): by default torch's current stream
for torch tensors, the device's default stream otherwise. Freeing a result that was allocated here waits for the
device, so a loop should give `out`. A call with arrays of JAX waits for its kernel, since their memory may go on to
other work as soon as they are dropped.
"""

from finercam_rt.kernel_arrays import cuda_status as cuda_status
from finercam_rt.ops.activation_maps import KERNEL_METHODS as KERNEL_METHODS
from finercam_rt.ops.activation_maps import cam as cam
from finercam_rt.ops.perturbation import mask as mask
from finercam_rt.ops.perturbation import rank as rank
from finercam_rt.ops.perturbation import remove as remove
from finercam_rt.ops.preprocessing import INTERPOLATIONS as INTERPOLATIONS
from finercam_rt.ops.preprocessing import Frame as Frame
from finercam_rt.ops.preprocessing import preprocess as preprocess
from finercam_rt.ops.rendering import MAX_SIDE as MAX_SIDE
from finercam_rt.ops.rendering import Box as Box
from finercam_rt.ops.rendering import Rendered as Rendered
from finercam_rt.ops.rendering import Status as Status
from finercam_rt.ops.rendering import render as render
from finercam_rt.ops.rendering import status as status
from finercam_rt.ops.seeding import MAX_REFERENCES as MAX_REFERENCES
from finercam_rt.ops.seeding import Seed as Seed
from finercam_rt.ops.seeding import seed as seed
