// Colour one picture with the ONNX file of export.py and with ONNX Runtime alone; README.md says how to build it.
//
//     colorize_onnx generator.onnx photo.ppm coloured.ppm
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
    int64_t width = 0, height = 0;
    std::vector<float> values;  // (3, height, width) in [0, 1]: all red values, then all green, then all blue
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    Image image;
    int largest = 0;
    if (!(file >> kind >> image.width >> image.height >> largest) || kind != "P6" || largest != 255)
        throw std::runtime_error(path + ": not a binary PPM of 8 bits (no comments)");
    file.get();  // the one character before the pixels
    const int64_t area = image.width * image.height;
    std::vector<char> pixels(3 * area);
    if (!file.read(pixels.data(), pixels.size())) throw std::runtime_error(path + ": the file ends too early");
    image.values.resize(3 * area);
    for (int64_t i = 0; i < 3 * area; ++i) image.values[i % 3 * area + i / 3] = uint8_t(pixels[i]) / 255.0f;
    return image;
}

void write_ppm(const std::string& path, const Image& image) {
    const int64_t area = image.width * image.height;
    std::vector<char> pixels(3 * area);
    for (int64_t i = 0; i < 3 * area; ++i)
        pixels[i] = char(std::lround(std::clamp(image.values[i % 3 * area + i / 3], 0.0f, 1.0f) * 255.0f));
    std::ofstream file(path, std::ios::binary);
    file << "P6\n" << image.width << ' ' << image.height << "\n255\n";
    if (!file.write(pixels.data(), pixels.size()).flush()) throw std::runtime_error(path + ": cannot be written");
}

int main(int argc, char** argv) try {
    if (argc != 4) throw std::runtime_error("usage: colorize_onnx generator.onnx photo.ppm coloured.ppm");
    Image image = read_ppm(argv[2]);

    const Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "colorize");
    Ort::SessionOptions options;
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");  // threads that wait sleep: for busy machines
    Ort::Session session(environment, argv[1], options);

    const std::vector<int64_t> shape{1, 3, image.height, image.width}, hints_shape{1, 4, image.height, image.width};
    std::vector<float> hints(4 * image.width * image.height);  // red, green, blue and opacity; 0 where there is no hint
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::Value> inputs;
    for (auto [values, sizes] : {std::pair{&image.values, &shape}, std::pair{&hints, &hints_shape}})
        inputs.push_back(Ort::Value::CreateTensor<float>(memory, values->data(), values->size(), sizes->data(), 4));
    const char *names[]{"image", "hints"}, *result[]{"colour"};
    const size_t count = session.GetInputCount();  // 2 for a model that takes hints, else 1
    const auto outputs = session.Run(Ort::RunOptions{}, names, inputs.data(), count, result, 1);

    const float* colours = outputs[0].GetTensorData<float>();
    image.values.assign(colours, colours + 3 * image.width * image.height);
    write_ppm(argv[3], image);
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 2;
}
