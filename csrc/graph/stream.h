// Streams, events and graphs of CUDA, for bindings that know nothing of CUDA. All throw CudaError.
#pragma once

#include <cstddef>
#include <memory>

namespace finercam {

class Event {
 public:
  // timing: whether milliseconds_since may be asked; an event without costs less.
  Event(int device, bool timing);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void synchronize() const;  // waits on the host
  bool done() const;
  float milliseconds_since(const Event& earlier) const;  // both done
  void* handle() const { return event_; }

 private:
  void* event_ = nullptr;
  int device_;
};

// What a stream has captured, ready to be launched any number of times, one launch after the other.
class Graph {
 public:
  Graph(void* executable, std::size_t nodes, int device) : executable_(executable), nodes_(nodes), device_(device) {}
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  std::size_t nodes() const { return nodes_; }
  void* handle() const { return executable_; }

 private:
  void* executable_;
  std::size_t nodes_;
  int device_;
};

class Stream {
 public:
  explicit Stream(int device);       // a new one, which does not wait for the default stream
  Stream(int device, void* handle);  // the caller's, a cudaStream_t
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Of the host or of a device, to either. The host's memory must be pinned, or the call waits.
  void copy(void* to, const void* from, std::size_t bytes) const;
  void fill(void* to, unsigned char value, std::size_t bytes) const;
  void record(const Event& event) const;
  void wait(const Event& event) const;  // on the device
  void launch(const Graph& graph) const;
  void synchronize() const;

  // Between the two, what this thread queues on the stream does not run, but becomes the graph. After an exception of
  // either, or abandon_capture, the stream is as it was before.
  void begin_capture() const;
  std::unique_ptr<Graph> end_capture() const;
  void abandon_capture() const noexcept;
  bool capturing() const;  // of whatever thread

  void* handle() const { return stream_; }
  int device() const { return device_; }

 private:
  void* stream_ = nullptr;
  int device_;
  bool owned_;
};

}  // namespace finercam
