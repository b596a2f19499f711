// Colourise PNG and JPEG files with an exported generator.ts; USAGE says how to call it.
//
// A mistake in the call ends in one sentence and exit code 2 before any work. A file that fails is named with
// the reason, and the others are done.

#include "images.h"

#include <ATen/Parallel.h>
#include <sys/stat.h>
#include <torch/csrc/jit/python/update_graph_executor_opt.h>
#include <torch/csrc/jit/serialization/import.h>  // of torch/script.h, which takes longer to compile
#include <torch/cuda.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <utility>

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr long FORMAT = 2;  // of tinct.json; the newest that this program knows
constexpr const char* USAGE = R"(colorize --model FILE [--out DIR] [--hints PNG|DIR] [--device cpu|cuda] [--threads N] [--json] FILE...

Colourise PNG and JPEG files into DIR/NAME.png.

  --model FILE     generator.ts, as export.py writes it
  --out DIR        where the pictures go (default: out)
  --hints PNG|DIR  colours of your own: a transparent layer of the picture's size, or a folder with NAME.png
                   for each picture that has one
  --device NAME    cpu or cuda, where the network runs (default: cpu)
  --threads N      of the CPU (default: torch's, one per core)
  --json           a line of JSON per file, as where stdout is no terminal

Exit code: 0 all files are done; 1 some failed, each named on stderr; 2 the call is wrong, nothing was done.
)";

struct Options {
    bool json = !isatty(STDOUT_FILENO);
    std::string model, hints, out = "out", device = "cpu", threads;
    std::vector<fs::path> files;
};

struct Job {
    fs::path input, output, hints;  // hints: empty where there are none
};

[[noreturn]] void refuse(const std::string& sentence) { throw std::runtime_error(sentence); }

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Return the first line of what an error says, without tracebacks.
std::string reason(const std::exception& error) {
    const auto* torchs = dynamic_cast<const c10::Error*>(&error);
    std::string text = torchs ? torchs->what_without_backtrace() : error.what();
    const std::string name = "Error: ";  // a traceback of TorchScript ends with: ValueError: the sentence
    if (text.find("Traceback of TorchScript") != text.npos) text.erase(0, text.rfind(name) + name.size());
    return text.substr(0, text.find('\n'));
}

Options parse(const std::vector<std::string>& words) {
    Options options;
    std::map<std::string, std::string*> values{{"--model", &options.model},
                                               {"--out", &options.out},
                                               {"--hints", &options.hints},
                                               {"--device", &options.device},
                                               {"--threads", &options.threads}};
    bool names = false;  // -- ends the options
    for (auto word = words.begin(); word != words.end(); ++word) {
        if (*word == "--" && !names) {
            names = true;
            continue;
        }
        if (names || !word->starts_with("-")) {
            options.files.push_back(*word);
            continue;
        }
        if (*word == "--json") {
            options.json = true;
            continue;
        }
        const auto value = values.find(*word);
        if (value == values.end()) refuse("no option " + *word + "; see colorize --help");
        if (++word == words.end()) refuse(value->first + " needs a value; see colorize --help");
        *value->second = *word;
    }
    if (options.model.empty()) refuse("no model given; add --model generator.ts, which export.py writes");
    if (options.files.empty()) refuse("no files given; name PNG or JPEG files");
    return options;
}

// What tells files apart by whatever names they go; nothing for one that is not there.
std::optional<std::pair<dev_t, ino_t>> identity(const fs::path& path) {
    std::error_code error;
    const fs::path real = fs::weakly_canonical(path, error);  // "new/.." is no folder yet
    struct stat found;
    if (error || stat(real.c_str(), &found)) return {};
    return std::pair(found.st_dev, found.st_ino);
}

// Return the layer of hints for a picture; empty where there is none.
fs::path find_hints(const Options& options, const fs::path& input) {
    if (options.hints.empty() || !fs::is_directory(options.hints)) return options.hints;
    const fs::path layer = fs::path(options.hints) / (input.stem().string() + ".png");
    return fs::exists(layer) ? layer : fs::path();
}

std::vector<Job> plan(const Options& options) {
    std::set<std::optional<std::pair<dev_t, ino_t>>> inputs;
    for (const fs::path& input : options.files) inputs.insert(identity(input));
    std::map<fs::path, fs::path> sources;
    std::vector<Job> jobs;
    for (const fs::path& input : options.files) {
        const fs::path output = fs::path(options.out) / (input.stem().string() + ".png");
        const auto [first, is_new] = sources.emplace(output, input);
        if (!is_new && identity(input) && identity(input) == identity(first->second)) continue;  // named twice
        if (!is_new)
            refuse(first->second.string() + " and " + input.string() + " would both become " +
                   output.string() + "; colourise them with two --out");
        if (identity(output) && inputs.count(identity(output)))
            refuse(output.string() + ", the result of " + input.string() +
                   ", would overwrite an input; name another --out");
        jobs.push_back({input, output, find_hints(options, input)});
    }
    if (options.hints.empty()) return jobs;
    if (!fs::exists(options.hints)) refuse("no hints " + options.hints + "; name a PNG or a folder");
    if (!fs::is_directory(options.hints) && jobs.size() > 1)
        refuse(options.hints + ": hints for one picture, but " + std::to_string(jobs.size()) +
               " are named; name a folder of hints");
    if (std::all_of(jobs.begin(), jobs.end(), [](const Job& job) { return job.hints.empty(); }))
        refuse("no file in " + options.hints + " is named like a picture, NAME.png");
    return jobs;
}

void set_threads(const std::string& text) {
    int threads = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), threads);
    if (error != std::errc() || *end || threads < 1) refuse("--threads is a number from 1, got " + text);
    at::set_num_threads(threads);
}

// Let waiting threads sleep soon, as runtime/cli.py does, or one busy core slows all of them down, ten times and more.
// OpenMP reads this while the program is loaded: it starts itself again.
void let_threads_sleep(char** argv) {
    if (std::getenv("OMP_WAIT_POLICY") || at::get_num_threads() == 1) return;
    setenv("OMP_WAIT_POLICY", "passive", 0);
    setenv("GOMP_SPINCOUNT", "4000", 0);
    std::error_code not_linux;
    execv(fs::read_symlink("/proc/self/exe", not_linux).c_str(), argv);  // returns only if it fails
}

at::Device pick_device(const std::string& name) {
    if (name != "cpu" && name != "cuda") refuse("no device " + name + ": use cpu or cuda");
    if (name == "cuda" && !torch::cuda::is_available())
        refuse("cuda asked for, but torch sees no CUDA device; use --device cpu");
    return at::Device(name);
}

// Return where the value of a key begins in JSON, of the last one, as the recipe, which comes first, may have the
// same key; npos if there is none. A quoted key and its colon cannot be part of a text, where JSON escapes quotes.
size_t value_at(const std::string& json, const std::string& key) {
    const std::string quoted = "\"" + key + "\":";
    const size_t found = json.rfind(quoted);
    return found == json.npos ? json.npos : json.find_first_not_of(' ', found + quoted.size());
}

long number_of(const std::string& json, const std::string& key) {
    const size_t start = value_at(json, key);
    return start == json.npos ? 0 : std::strtol(&json[start], nullptr, 10);
}

std::string text_of(const std::string& json, const std::string& key) {
    const size_t start = value_at(json, key);
    return start == json.npos ? "?" : json.substr(start + 1, json.find('"', start + 1) - start - 1);
}

// Return how many bytes at a place in a text are one character of UTF-8; 0 if they are none.
size_t utf8_length(const std::string& text, size_t place) {
    const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0; };
    const int first = byte(place), second = byte(place + 1);
    const size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    for (size_t i = 1; i < length; ++i)
        if ((byte(place + i) & 0xC0) != 0x80) return 0;
    const bool too_long = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
    const bool beyond = (first == 0xED && second > 0x9F) || (first == 0xF4 && second > 0x8F);
    return too_long || beyond ? 0 : length;
}

// Return a text as JSON writes it; bytes that are no UTF-8, which a file's name may have, as Python writes them.
std::string quoted(const std::string& text) {
    std::ostringstream out;
    out << '"' << std::hex << std::setfill('0');
    for (size_t i = 0; i < text.size();) {
        const size_t length = utf8_length(text, i);
        const int c = static_cast<unsigned char>(text[i]);
        if (length == 0)
            out << "\\u" << std::setw(4) << 0xDC00 + c;
        else if (c < 0x20)
            out << "\\u" << std::setw(4) << c;
        else
            out << (c == '"' || c == '\\' ? "\\" : "") << text.substr(i, length);
        i += std::max<size_t>(length, 1);
    }
    out << '"';
    return out.str();
}

// Whether this CPU has instructions for bf16, without which it emulates them, far slower than it computes in fp32.
bool multiplies_bf16() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

torch::jit::Module load_model(const Options& options, at::Device device) {
    const std::string& path = options.model;
    if (!fs::is_regular_file(path)) refuse("no model " + path + "; write one with: python export.py");
    torch::jit::ExtraFilesMap files{{"tinct.json", ""}};
    torch::jit::Module model;
    try {
        model = torch::jit::load(path, at::kCPU, files);
    } catch (const std::exception& error) {
        const bool lacks = std::string(error.what()).find("Unknown builtin op") != std::string::npos;
        refuse(path + (lacks ? " needs an operator that this torch lacks: build with the torch that wrote it, or a newer one"
                             : " is not a TorchScript file, or it is damaged"));
    }
    const std::string& metadata = files["tinct.json"];
    if (metadata.empty()) refuse(path + " is a TorchScript file, but not one written by export.py");
    const long format = number_of(metadata, "format");
    if (format < 1) refuse(path + " is of an older version of Tinct; export it again with this one");
    if (format > FORMAT)
        refuse(path + " is of a newer version of Tinct, format " + std::to_string(format) +
               ", and this program knows format " + std::to_string(FORMAT) + "; build it from that version");
    const std::string precision = text_of(metadata, "precision");
    const bool is_emulated = device.is_cpu() && (precision == "fp16" || (precision == "bf16" && !multiplies_bf16()));
    const std::string seen = text_of(metadata, "trained_on");
    const std::string averaged = text_of(metadata, "averaged");
    const bool is_mean = !averaged.empty() && averaged != "?";
    std::cerr << "model " << path << ": recipe " << text_of(metadata, "name") << ", "
              << (is_mean ? "mean of epochs " + averaged : "epoch " + std::to_string(number_of(metadata, "epoch"))) << ", "
              << precision << (seen.empty() || seen == "?" ? "" : ", trained on " + seen)
              << "; on " << device << (is_emulated ? ", in fp32" : "") << std::endl;
    if (!options.hints.empty() && metadata.find("\"hints\": true") == metadata.npos)
        refuse(path + " takes no hints: use a model of a recipe with hints, or leave --hints out");
    if (is_emulated) model.to(at::kFloat);
    model.to(device);
    return model;
}

// Read a layer (H, W, 4) for an image (1, 1|3, H, W): (1, 4, H, W) of its dtype, on its device.
at::Tensor read_hints(const fs::path& path, const at::Tensor& image) {
    at::Tensor layer;
    try {
        layer = read_image(path, true);
    } catch (const std::exception& error) {
        refuse(path.string() + ": " + reason(error));
    }
    if (layer.size(0) != image.size(2) || layer.size(1) != image.size(3))
        refuse(path.string() + " has " + std::to_string(layer.size(1)) + " x " + std::to_string(layer.size(0)) +
               " px, its picture " + std::to_string(image.size(3)) + " x " + std::to_string(image.size(2)));
    if (layer.scalar_type() != image.scalar_type()) {
        const at::Tensor levels = layer.to(at::kInt);
        const bool deeper = image.scalar_type() == at::kUInt16;
        layer = (deeper ? levels.mul(257) : levels.add(128).div(257, "floor")).to(image.scalar_type());
    }
    return layer.permute({2, 0, 1}).unsqueeze(0).to(image.device());
}

// Colour one picture, and say so; `place` is [3/30], for people alone.
void colorize(torch::jit::Module& model, const Job& job, at::Device device, bool json, const std::string& place) {
    const auto start = Clock::now();
    const at::Tensor picture = read_image(job.input);                             // (H, W, 1|3)
    const at::Tensor image = picture.permute({2, 0, 1}).unsqueeze(0).to(device);  // (1, 1|3, H, W)
    std::vector<c10::IValue> given{image};
    if (!job.hints.empty()) given.emplace_back(read_hints(job.hints, image));
    const at::Tensor colour = model.forward(std::move(given)).toTensor();  // (1, 3, H, W)
    write_png(job.output, colour[0].permute({1, 2, 0}).cpu().contiguous());
    if (json)
        std::cout << "{\"file\": " << quoted(job.input.string()) << ", \"output\": " << quoted(job.output.string())
                  << ", \"status\": \"done\", \"seconds\": " << seconds_since(start) << '}' << std::endl;
    else
        std::cout << place << job.input.string() << " -> " << job.output.string() << ", " << image.size(3) << " x "
                  << image.size(2) << " px, " << seconds_since(start) << " s" << std::endl;
}

int run(const Options& options, char** argv) {
    const std::vector<Job> jobs = plan(options);
    if (!options.threads.empty()) set_threads(options.threads);
    let_threads_sleep(argv);
    const at::Device device = pick_device(options.device);
    torch::jit::Module model = load_model(options, device);
    std::error_code cause;
    const bool is_new = fs::create_directories(options.out, cause);
    if (cause) refuse("folder " + options.out + " cannot be made: " + cause.message());
    // so that no stage takes the results for originals
    if (is_new) std::ofstream(fs::path(options.out) / ".colorized") << "The pictures in this folder were made by colorize.\n";

    torch::jit::setGraphExecutorOptimize(false);  // it slowed the first two images by 50 ms, and sped up none
    const c10::InferenceMode inference;
    const auto start = Clock::now();
    size_t done = 0, failed = 0;
    for (const Job& job : jobs) {
        const std::string number = std::to_string(done + failed + 1) + "/" + std::to_string(jobs.size());
        const std::string place = options.json ? "" : "[" + number + "] ";
        try {
            colorize(model, job, device, options.json, place);
            ++done;
        } catch (const std::exception& error) {
            ++failed;
            std::cerr << place << "not done: " << job.input.string() << ": " << reason(error) << std::endl;
            if (options.json)
                std::cout << "{\"file\": " << quoted(job.input.string()) << ", \"status\": \"failed\", \"reason\": "
                          << quoted(reason(error)) << '}' << std::endl;
        }
    }
    std::cerr << jobs.size() << (jobs.size() == 1 ? " file: " : " files: ");
    if (done) std::cerr << done << " done";
    if (failed) std::cerr << (done ? ", " : "") << failed << " failed";
    std::cerr << "; " << seconds_since(start) << " s, in " << (fs::path(options.out) / "").string() << '\n';
    return failed ? 1 : 0;
}

int main(int argc, char** argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    if (std::find(words.begin(), words.end(), "--help") != words.end()) {
        std::cout << USAGE;
        return 0;
    }
#ifdef SIGPIPE
    std::signal(SIGPIPE, SIG_IGN);  // a reader of stdout that goes away ends nothing
#endif
    for (std::ostream* out : {&std::cout, &std::cerr}) *out << std::fixed << std::setprecision(3);
    try {
        return run(parse(words), argv);
    } catch (const std::exception& error) {
        std::cerr << "colorize: " << reason(error) << '\n';
        return 2;
    }
}
