// The operands of one instruction, as text, and what their names stand for.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

std::string trimmed(const std::string& text);
std::vector<std::string> split(const std::string& text, char separator);
// By the commas that are in no brackets.
std::vector<std::string> listed(const std::string& text);
Type type_of(const std::string& name);

// Registers and variables by their names.
struct Names {
  std::unordered_map<std::string, int> registers;
  std::unordered_map<std::string, std::uint64_t> addresses;
};

class Operands {
 public:
  Operands(const Names& names, const std::string& text) : names_(names), texts_(listed(text)) {}

  // Throws unless there are as many.
  void expect(std::size_t count) const;
  bool is_vector(std::size_t index) const { return texts_.at(index)[0] == '{'; }
  Operand at(std::size_t index) const { return read(texts_.at(index)); }
  const std::string& text(std::size_t index) const { return texts_.at(index); }
  // The register and the predicate of "r|p".
  void pair(std::size_t index, Operand& first, Operand& second) const;
  // The registers of {a, b, ...}, or of one.
  void vector(std::size_t index, Instruction& instruction) const;
  // [base+offset] into in[0] and offset.
  void address(std::size_t index, Instruction& instruction) const;

 private:
  Operand read(const std::string& text) const;

  const Names& names_;
  std::vector<std::string> texts_;
};

}  // namespace ptx
