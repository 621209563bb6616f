// .npy files: the arrays of a bundle's golden set, and frames that were stored without a codec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace edgeact {

// A .npy file in C order, opened: its header is read, and its values are read as they are asked for.
class Npy {
 public:
  // `type` is numpy's, such as "|u1" or "<f4"; its last character is its size in bytes. Throws Error where the file is
  // missing, damaged, cut short or of another type.
  Npy(const std::filesystem::path& file, const std::string& type, std::size_t dimensions);

  const std::vector<std::size_t>& shape() const { return shape_; }

  // The next `count` bytes, into `to`.
  void read(void* to, std::size_t count);

 private:
  std::filesystem::path file_;
  std::ifstream stream_;
  std::vector<std::size_t> shape_;
};

// "16 x 112 x 112 x 3"
std::string in_words(const std::vector<std::size_t>& shape);

}  // namespace edgeact
