// One step of AdEMAMix (2409.03137, algorithm 1) in one pass: each element is read once and written once.
//
// Compiled by compiled.py, with REAL the type of the weights. The loops are plain, for the compiler to vectorise.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

using Real = REAL;
using BFloat16 = uint16_t;

extern "C" {

struct Tensor {
    int64_t elements;
    Real* theta;
    const Real* gradient;  // null: the tensor is left alone
    Real* m1;              // null: beta1 = 0
    void* m2;              // null: the slow average is not at work
    Real* nu;
    double decay;
};

struct Rates {
    double take1, take2, take3;  // 1 - beta of m1, nu, m2
    double rate;                 // learning rate
    double rate1;                // of m1: the learning rate over its bias correction
    double rate2;                // of m2: the learning rate times alpha
    double root;                 // of nu: 1 over the root of its bias correction
    double epsilon;
    uint32_t dither, stride;     // thresholds of rounding to bfloat16: dither + position * stride, 16 bits of it
    int32_t narrow;              // m2 is bfloat16
};
}

namespace {

Real widen(BFloat16 narrow) {
    const uint32_t bits = static_cast<uint32_t>(narrow) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Adding carries into the upper half or not, whatever the sign; see dither.py.
BFloat16 round_with(Real value, uint32_t threshold) {
    const float wide = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof bits);
    return static_cast<BFloat16>((bits + (threshold & 0xFFFF)) >> 16);
}

// Slow: the type of m2's elements, or void.
template <bool has_m1, typename Slow>
void step_range(const Tensor& tensor, const Rates& rates, int64_t begin, int64_t end) {
    Real* __restrict theta = tensor.theta;
    const Real* __restrict gradient = tensor.gradient;
    Real* __restrict m1 = tensor.m1;
    Slow* __restrict m2 = static_cast<Slow*>(tensor.m2);
    Real* __restrict nu = tensor.nu;
    const Real take1 = rates.take1, take2 = rates.take2, take3 = rates.take3, rate1 = rates.rate1, rate2 = rates.rate2;
    const Real root = rates.root, epsilon = rates.epsilon, keep = 1 - rates.rate * tensor.decay;
    const uint32_t dither = rates.dither, stride = rates.stride;
    for (int64_t i = begin; i < end; i++) {
        const Real g = gradient[i];
        Real first = g;
        if constexpr (has_m1) {
            first = m1[i] + take1 * (g - m1[i]);
            m1[i] = first;
        }
        Real move = rate1 * first;
        if constexpr (std::is_same_v<Slow, Real>) {
            const Real slow = m2[i] + take3 * (g - m2[i]);
            m2[i] = slow;
            move += rate2 * slow;
        } else if constexpr (std::is_same_v<Slow, BFloat16>) {
            const Real before = widen(m2[i]), slow = before + take3 * (g - before);
            m2[i] = round_with(slow, dither + static_cast<uint32_t>(i) * stride);
            move += rate2 * slow;
        }
        const Real second = nu[i] + take2 * (g * g - nu[i]);
        nu[i] = second;
        theta[i] = keep * theta[i] - move / (root * std::sqrt(second) + epsilon);
    }
}

template <bool has_m1>
void step_tensor(const Tensor& tensor, const Rates& rates, int64_t begin, int64_t end) {
    if (tensor.m2 == nullptr) {
        step_range<has_m1, void>(tensor, rates, begin, end);
    } else if (rates.narrow) {
        step_range<has_m1, BFloat16>(tensor, rates, begin, end);
    } else {
        step_range<has_m1, Real>(tensor, rates, begin, end);
    }
}

}  // namespace

// Part `part` of `parts` of each tensor.
extern "C" void step(const Tensor* tensors, int64_t count, const Rates* rates, int64_t part, int64_t parts) {
    constexpr int64_t grain = 64;  // elements: two threads share no line of a cache
    for (const Tensor* tensor = tensors; tensor != tensors + count; tensor++) {
        if (tensor->gradient == nullptr) {
            continue;
        }
        const int64_t grains = tensor->elements / grain;
        const int64_t begin = grains * part / parts * grain;
        const int64_t end = part + 1 == parts ? tensor->elements : grains * (part + 1) / parts * grain;
        if (tensor->m1 == nullptr) {
            step_tensor<false>(*tensor, *rates, begin, end);
        } else {
            step_tensor<true>(*tensor, *rates, begin, end);
        }
    }
}
