// What an instruction makes of its operands alone.
#pragma once

#include <cstdint>

#include "program.h"

namespace ptx {

using Bits = std::uint64_t;  // of a register, from the lowest one up

std::int64_t sign_extended(Bits bits, Type type);
Bits zero_extended(Bits bits, Type type);

// Of the operations that Op lists first; x: the values of i.in.
Bits computed(const Instruction& i, const Bits x[4]);

}  // namespace ptx
