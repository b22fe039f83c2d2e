#include "core/cuda_check.h"
#include "graph/stream.h"

namespace finercam {
namespace {

cudaStream_t stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }
cudaEvent_t event_of(void* handle) { return static_cast<cudaEvent_t>(handle); }
cudaGraphExec_t graph_of(void* handle) { return static_cast<cudaGraphExec_t>(handle); }

// A graph before it is made executable, which ends with the scope.
struct Template {
  cudaGraph_t graph = nullptr;
  ~Template() {
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
};

}  // namespace

Event::Event(int device, bool timing) : device_(device) {
  const DeviceScope scope(device);
  cudaEvent_t event = nullptr;
  FINERCAM_CUDA_CHECK_AS(cudaEventCreateWithFlags(&event, timing ? cudaEventDefault : cudaEventDisableTiming),
                         "making an event of cuda:", device);
  event_ = event;
}

Event::~Event() {
  const ReleaseScope scope(device_);
  if (scope.usable()) cudaEventDestroy(event_of(event_));
}

void Event::synchronize() const {
  const DeviceScope scope(device_);
  FINERCAM_CUDA_CHECK_AS(cudaEventSynchronize(event_of(event_)), "waiting for the work on cuda:", device_);
}

bool Event::done() const {
  const DeviceScope scope(device_);
  const cudaError_t state = cudaEventQuery(event_of(event_));
  if (state == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  FINERCAM_CUDA_CHECK_AS(state, "asking for the work on cuda:", device_);
  return true;
}

float Event::milliseconds_since(const Event& earlier) const {
  const DeviceScope scope(device_);
  float milliseconds = 0;
  FINERCAM_CUDA_CHECK_AS(cudaEventElapsedTime(&milliseconds, event_of(earlier.event_), event_of(event_)),
                         "reading the time between two events of cuda:", device_);
  return milliseconds;
}

Graph::~Graph() {
  const ReleaseScope scope(device_);
  if (scope.usable()) cudaGraphExecDestroy(graph_of(executable_));
}

Stream::Stream(int device) : device_(device), owned_(true) {
  const DeviceScope scope(device);
  cudaStream_t stream = nullptr;
  FINERCAM_CUDA_CHECK_AS(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream of cuda:", device);
  stream_ = stream;
}

Stream::Stream(int device, void* handle) : stream_(handle), device_(device), owned_(false) {}

Stream::~Stream() {
  if (!owned_) return;
  const ReleaseScope scope(device_);
  if (scope.usable()) cudaStreamDestroy(stream_of(stream_));
}

void Stream::copy(void* to, const void* from, std::size_t bytes) const {
  const DeviceScope scope(device_);
  FINERCAM_CUDA_CHECK_AS(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream_)), "copying ", bytes,
                         " bytes on cuda:", device_);
}

void Stream::fill(void* to, unsigned char value, std::size_t bytes) const {
  const DeviceScope scope(device_);
  FINERCAM_CUDA_CHECK_AS(cudaMemsetAsync(to, value, bytes, stream_of(stream_)), "filling ", bytes,
                         " bytes of cuda:", device_);
}

void Stream::record(const Event& event) const {
  const DeviceScope scope(device_);
  FINERCAM_CUDA_CHECK_AS(cudaEventRecord(event_of(event.handle()), stream_of(stream_)),
                         "recording an event of cuda:", device_);
}

void Stream::wait(const Event& event) const {
  const DeviceScope scope(device_);
  FINERCAM_CUDA_CHECK_AS(cudaStreamWaitEvent(stream_of(stream_), event_of(event.handle()), 0),
                         "ordering two streams of cuda:", device_);
}

void Stream::launch(const Graph& graph) const {
  const DeviceScope scope(device_);
  FINERCAM_CUDA_CHECK_AS(cudaGraphLaunch(graph_of(graph.handle()), stream_of(stream_)), "launching a graph of ",
                         graph.nodes(), " nodes on cuda:", device_);
}

void Stream::synchronize() const {
  const DeviceScope scope(device_);
  FINERCAM_CUDA_CHECK_AS(cudaStreamSynchronize(stream_of(stream_)), "waiting for the work on cuda:", device_);
}

void Stream::begin_capture() const {
  const DeviceScope scope(device_);
  // thread local: what other threads allocate meanwhile does not end the capture
  FINERCAM_CUDA_CHECK_AS(cudaStreamBeginCapture(stream_of(stream_), cudaStreamCaptureModeThreadLocal),
                         "beginning to capture on cuda:", device_);
}

std::unique_ptr<Graph> Stream::end_capture() const {
  const DeviceScope scope(device_);
  Template captured;
  FINERCAM_CUDA_CHECK_AS(cudaStreamEndCapture(stream_of(stream_), &captured.graph),
                         "capturing a graph on cuda:", device_);
  std::size_t nodes = 0;
  FINERCAM_CUDA_CHECK_AS(cudaGraphGetNodes(captured.graph, nullptr, &nodes), "reading a graph on cuda:", device_);
  cudaGraphExec_t executable = nullptr;
  FINERCAM_CUDA_CHECK_AS(cudaGraphInstantiateWithFlags(&executable, captured.graph, 0), "making a graph of ", nodes,
                         " nodes executable on cuda:", device_);
  auto graph = std::make_unique<Graph>(executable, nodes, device_);
  // or the first launch would do it
  FINERCAM_CUDA_CHECK_AS(cudaGraphUpload(executable, stream_of(stream_)), "uploading a graph of ", nodes,
                         " nodes to cuda:", device_);
  return graph;
}

bool Stream::capturing() const {
  const DeviceScope scope(device_);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  FINERCAM_CUDA_CHECK_AS(cudaStreamIsCapturing(stream_of(stream_), &status),
                         "asking whether a stream is captured on cuda:", device_);
  return status != cudaStreamCaptureStatusNone;
}

void Stream::abandon_capture() const noexcept {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  Template captured;
  if (cudaStreamIsCapturing(stream_of(stream_), &status) == cudaSuccess && status != cudaStreamCaptureStatusNone) {
    cudaStreamEndCapture(stream_of(stream_), &captured.graph);
  }
  cudaGetLastError();
}

}  // namespace finercam
