#include "operands.h"

#include <cctype>
#include <cstdlib>
#include <sstream>

namespace ptx {
namespace {

// Of the special registers with axes: the name without ".x".
bool read_special(const std::string& name, Operand& operand) {
  static const std::unordered_map<std::string, Special> axes = {{"%tid", Special::kThread},
                                                                {"%ntid", Special::kThreads},
                                                                {"%ctaid", Special::kBlock},
                                                                {"%nctaid", Special::kBlocks}};
  const std::size_t dot = name.find('.');
  if (dot != std::string::npos) {
    const auto found = axes.find(name.substr(0, dot));
    if (found == axes.end()) return false;
    operand.special = found->second;
    operand.index = name[dot + 1] - 'x';
  } else if (name == "%cluster_ctarank") {
    operand.special = Special::kClusterRank;
  } else if (name == "%cluster_nctarank") {
    operand.special = Special::kClusterBlocks;
  } else {
    return false;
  }
  operand.kind = Operand::Kind::kSpecial;
  return true;
}

std::uint64_t number(const std::string& text) {
  const bool is_float = text.size() > 2 && text[0] == '0' && std::string("fFdD").find(text[1]) != std::string::npos;
  if (is_float) return std::strtoull(text.c_str() + 2, nullptr, 16);  // its bits
  if (text[0] == '-') return static_cast<std::uint64_t>(std::strtoll(text.c_str(), nullptr, 0));
  return std::strtoull(text.c_str(), nullptr, 0);
}

}  // namespace

std::string trimmed(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::vector<std::string> listed(const std::string& text) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (const char c : text) {
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (c == ',' && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

Type type_of(const std::string& name) {
  static const std::unordered_map<std::string, Type> types = {
      {"pred", Type::kPredicate}, {"u8", Type::kU8},   {"u16", Type::kU16}, {"u32", Type::kU32},
      {"u64", Type::kU64},        {"s8", Type::kS8},   {"s16", Type::kS16}, {"s32", Type::kS32},
      {"s64", Type::kS64},        {"b8", Type::kB8},   {"b16", Type::kB16}, {"b32", Type::kB32},
      {"b64", Type::kB64},        {"f16", Type::kF16}, {"f32", Type::kF32}, {"f64", Type::kF64}};
  const auto found = types.find(name);
  return found == types.end() ? Type::kNone : found->second;
}

void Operands::expect(std::size_t count) const {
  if (texts_.size() != count) throw Fault("expected " + std::to_string(count) + " operands");
}

Operand Operands::read(const std::string& text) const {
  Operand operand;
  if (text == "_") return operand;
  if (text[0] == '%') {
    if (read_special(text, operand)) return operand;
    const auto found = names_.registers.find(text);
    if (found == names_.registers.end()) throw Fault("no register " + text);
    operand.kind = Operand::Kind::kRegister;
    operand.index = found->second;
    return operand;
  }
  operand.kind = Operand::Kind::kImmediate;
  if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-') {
    operand.value = number(text);
    return operand;
  }
  const auto found = names_.addresses.find(text);
  if (found == names_.addresses.end()) throw Fault("no variable " + text);
  operand.value = found->second;
  return operand;
}

void Operands::pair(std::size_t index, Operand& first, Operand& second) const {
  const std::string& text = texts_.at(index);
  const std::size_t bar = text.find('|');
  first = read(trimmed(text.substr(0, bar)));
  if (bar != std::string::npos) second = read(trimmed(text.substr(bar + 1)));
}

void Operands::vector(std::size_t index, Instruction& instruction) const {
  const std::string& text = texts_.at(index);
  std::vector<std::string> parts = {text};
  if (text[0] == '{') parts = listed(text.substr(1, text.size() - 2));
  if (parts.size() > 4) throw Fault("a vector of more than 4");
  instruction.vector = static_cast<int>(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) instruction.parts[i] = read(parts[i]);
}

void Operands::address(std::size_t index, Instruction& instruction) const {
  const std::string& text = texts_.at(index);
  if (text[0] != '[') throw Fault("expected an address");
  const std::string inside = text.substr(1, text.size() - 2);
  const std::size_t plus = inside.find('+');
  if (plus != std::string::npos) instruction.offset = std::strtoll(inside.c_str() + plus + 1, nullptr, 0);
  instruction.in[0] = read(trimmed(inside.substr(0, plus)));
}

}  // namespace ptx
