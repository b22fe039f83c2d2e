// The methods, as policies that the CPU and the CUDA kernels share.
//
// A statistic is what is summed of one input, or of both, over the positions of a channel or over the channels of a
// position. It has
//   kInputs                                     1, or 2 where it reads A (in[0]) and G (in[1])
//   kSums                                       how many sums there are
//   add(in, state, sums)                        Value is float, or a vector of floats on the CPU
// A pass sums a statistic over the positions of each channel. It has
//   Statistic, kInput                           what it sums, and of which input
//   finish(sums, positions, state)              the channel's next state; Sum is double on the CPU, float on CUDA
// A weighted method is a list of passes; the state after the last is the weight of the channel, and the map is
// ReLU(sum_k weight_k A_k). A summed method has a statistic over channels instead: the map is ReLU of its sum.
//
// Reading each input once is enough for Grad-CAM and for the summed methods. XGrad-CAM reads A twice, for a weight must
// be known before it multiplies. Grad-CAM++ has the sum of A inside a quotient for every element of G: A twice, G once.
// FEM needs the mean before the deviations and both before the count: A four times. What a block reads again lies in
// the L2 by then.
//
// Formulas: DESIGN, section 2, as in pytorch-grad-cam 1.5.7; export/method.py has them in the graph. NaN stays NaN.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace finercam {

enum class Input { kActivations, kGradients, kBoth };

// ReLU that lets NaN through: a map that is not finite must be seen, not hidden.
FINERCAM_HOST_DEVICE float rectify(float value) { return value <= 0.0f ? 0.0f : value; }

struct Total {
  static constexpr int kInputs = 1, kSums = 1;
  template <typename Value>
  static FINERCAM_HOST_DEVICE void add(const Value* in, const Value&, Value* sums) {
    sums[0] += in[0];
  }
};

// (A - mean)^2, the mean as the state.
struct SquaredDeviation {
  static constexpr int kInputs = 1, kSums = 1;
  template <typename Value>
  static FINERCAM_HOST_DEVICE void add(const Value* in, const Value& state, Value* sums) {
    const Value deviation = in[0] - state;
    sums[0] += deviation * deviation;
  }
};

// 1 where A is above the state.
struct CountAbove {
  static constexpr int kInputs = 1, kSums = 1;
  template <typename Value>
  static FINERCAM_HOST_DEVICE void add(const Value* in, const Value& state, Value* sums) {
    sums[0] += in[0] > state ? Value{} + 1.0f : Value{};
  }
};

// ReLU(G) * G^2 / (2 G^2 + (sum A) G^3 + 1e-6), 0 where G is 0; sum A as the state.
struct PlusPlusTerm {
  static constexpr int kInputs = 1, kSums = 1;
  template <typename Value>
  static FINERCAM_HOST_DEVICE void add(const Value* in, const Value& state, Value* sums) {
    const Value g = in[0];
    const Value square = g * g;
    const Value quotient = square / (2.0f * square + state * square * g + 1e-6f);
    sums[0] += (g <= Value{} ? Value{} : g) * (g == Value{} ? Value{} : quotient);
  }
};

// G A, and A.
struct ProductAndTotal {
  static constexpr int kInputs = 2, kSums = 2;
  template <typename Value>
  static FINERCAM_HOST_DEVICE void add(const Value* in, const Value&, Value* sums) {
    sums[0] += in[1] * in[0];
    sums[1] += in[0];
  }
};

struct HiResTerm {  // G A
  static constexpr int kInputs = 2, kSums = 1;
  template <typename Value>
  static FINERCAM_HOST_DEVICE void add(const Value* in, const Value&, Value* sums) {
    sums[0] += in[1] * in[0];
  }
};

struct LayerTerm {  // ReLU(G) A
  static constexpr int kInputs = 2, kSums = 1;
  template <typename Value>
  static FINERCAM_HOST_DEVICE void add(const Value* in, const Value&, Value* sums) {
    sums[0] += (in[1] <= Value{} ? Value{} : in[1]) * in[0];
  }
};

struct ElementwiseTerm {  // ReLU(G A)
  static constexpr int kInputs = 2, kSums = 1;
  template <typename Value>
  static FINERCAM_HOST_DEVICE void add(const Value* in, const Value&, Value* sums) {
    const Value product = in[1] * in[0];
    sums[0] += product <= Value{} ? Value{} : product;
  }
};

template <typename Of, Input kOf>
struct Pass {
  using Statistic = Of;
  static constexpr Input kInput = kOf;
};

template <Input kOf>
struct Mean : Pass<Total, kOf> {
  template <typename Sum>
  static FINERCAM_HOST_DEVICE Sum finish(const Sum* sums, Sum positions, Sum) {
    return sums[0] / positions;
  }
};

template <typename Of, Input kOf>
struct Plain : Pass<Of, kOf> {
  template <typename Sum>
  static FINERCAM_HOST_DEVICE Sum finish(const Sum* sums, Sum, Sum) {
    return sums[0];
  }
};

struct Share : Pass<ProductAndTotal, Input::kBoth> {
  template <typename Sum>
  static FINERCAM_HOST_DEVICE Sum finish(const Sum* sums, Sum, Sum) {
    return sums[0] / (sums[1] + static_cast<Sum>(1e-7));
  }
};

// mean + 2 (population) standard deviations, the mean as the state.
struct Threshold : Pass<SquaredDeviation, Input::kActivations> {
  template <typename Sum>
  static FINERCAM_HOST_DEVICE Sum finish(const Sum* sums, Sum positions, Sum mean) {
    return mean + 2 * std::sqrt(sums[0] / positions);
  }
};

struct ShareAbove : Pass<CountAbove, Input::kActivations> {
  template <typename Sum>
  static FINERCAM_HOST_DEVICE Sum finish(const Sum* sums, Sum positions, Sum) {
    return sums[0] / positions;
  }
};

template <typename... Passes>
struct PassList {};

// The weights are given, in place of G.
struct GivenWeights {};

// Selvaraju et al., ICCV 2017.
using GradCam = PassList<Mean<Input::kGradients>>;
// Chattopadhay et al., WACV 2018, with the gradients of the logits.
using GradCamPlusPlus = PassList<Plain<Total, Input::kActivations>, Plain<PlusPlusTerm, Input::kGradients>>;
// Fu et al., BMVC 2020.
using XGradCam = PassList<Share>;
// Ahmed Asif Fuad et al., IPTA 2020.
using Fem = PassList<Mean<Input::kActivations>, Threshold, ShareAbove>;

template <typename Term>
struct SummedMethod {
  using Statistic = Term;
};

using LayerCam = SummedMethod<LayerTerm>;                  // Jiang et al., TIP 2021
using HiResCam = SummedMethod<HiResTerm>;                  // Draelos and Carin, 2020
using GradCamElementwise = SummedMethod<ElementwiseTerm>;  // pytorch-grad-cam

enum class Method {
  kChannelWeights,
  kGradCam,
  kGradCamPlusPlus,
  kXGradCam,
  kFem,
  kLayerCam,
  kHiResCam,
  kGradCamElementwise
};

// Calls visitor with a value of the method's policy.
template <typename Visitor>
void visit_method(Method method, const Visitor& visitor) {
  switch (method) {
    case Method::kChannelWeights:
      return visitor(GivenWeights{});
    case Method::kGradCam:
      return visitor(GradCam{});
    case Method::kGradCamPlusPlus:
      return visitor(GradCamPlusPlus{});
    case Method::kXGradCam:
      return visitor(XGradCam{});
    case Method::kFem:
      return visitor(Fem{});
    case Method::kLayerCam:
      return visitor(LayerCam{});
    case Method::kHiResCam:
      return visitor(HiResCam{});
    case Method::kGradCamElementwise:
      return visitor(GradCamElementwise{});
  }
}

}  // namespace finercam
