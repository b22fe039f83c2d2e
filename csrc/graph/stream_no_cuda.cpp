#include "core/check.h"
#include "graph/stream.h"

#define FINERCAM_NO_CUDA FINERCAM_CHECK(false, "device", "expected a build with CUDA, got one without")

namespace finercam {

// No object of these classes exists in this build: the constructors throw, so the rest is never called.
Event::Event(int device, bool) : device_(device) { FINERCAM_NO_CUDA; }
Event::~Event() = default;
void Event::synchronize() const { FINERCAM_NO_CUDA; }
bool Event::done() const { FINERCAM_NO_CUDA; }
float Event::milliseconds_since(const Event&) const { FINERCAM_NO_CUDA; }

Graph::~Graph() = default;

Stream::Stream(int device) : device_(device), owned_(true) { FINERCAM_NO_CUDA; }
Stream::Stream(int device, void* handle) : stream_(handle), device_(device), owned_(false) { FINERCAM_NO_CUDA; }
Stream::~Stream() = default;
void Stream::copy(void*, const void*, std::size_t) const { FINERCAM_NO_CUDA; }
void Stream::fill(void*, unsigned char, std::size_t) const { FINERCAM_NO_CUDA; }
void Stream::record(const Event&) const { FINERCAM_NO_CUDA; }
void Stream::wait(const Event&) const { FINERCAM_NO_CUDA; }
void Stream::launch(const Graph&) const { FINERCAM_NO_CUDA; }
void Stream::synchronize() const { FINERCAM_NO_CUDA; }
void Stream::begin_capture() const { FINERCAM_NO_CUDA; }
std::unique_ptr<Graph> Stream::end_capture() const { FINERCAM_NO_CUDA; }
void Stream::abandon_capture() const noexcept {}
bool Stream::capturing() const { FINERCAM_NO_CUDA; }

}  // namespace finercam
