// What the extension links to and the interpreter has not: streams of its own, clocks, graphs, the driver. Declared
// without their arguments, which are not looked at.
#define REFUSED(name) \
  extern "C" int name() { return 801; }  // cudaErrorNotSupported

REFUSED(cudaEventElapsedTime)
REFUSED(cudaGetDriverEntryPoint)
REFUSED(cudaGetDriverEntryPointByVersion)
REFUSED(cudaGraphDestroy)
REFUSED(cudaGraphExecDestroy)
REFUSED(cudaGraphGetNodes)
REFUSED(cudaGraphInstantiateWithFlags)
REFUSED(cudaGraphLaunch)
REFUSED(cudaGraphUpload)
REFUSED(cudaStreamBeginCapture)
REFUSED(cudaStreamCreateWithFlags)
REFUSED(cudaStreamDestroy)
REFUSED(cudaStreamEndCapture)
