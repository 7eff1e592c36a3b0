/* par - packs a provider archive, checks one, and prints what is inside.
 *
 *     build/par pack OUTPUT --name NAME --vendor VENDOR --version VERSION --revision N TARGET=BINARY…
 *     build/par inspect FILE
 *
 * An archive is a tar, compressed if its name ends in .gz: claims.jwt, and for each target (x86_64-linux,
 * aarch64-linux) its binary, TARGET.bin. The claims say whose provider this is and what hash each binary has,
 * and are signed by an account. A host checks the hash of the binary that it starts, not the signature:
 * `inspect` checks all of it. protocol: wasmCloud 1.9.2, crates/provider-archive and crates/wascap.
 *
 * The keys are seeds of nkeys in PAR_ISSUER (the account, SA…) and PAR_SUBJECT (the provider, SV…), or paths
 * of files that hold one, as wash writes them to ~/.wash/keys. What is not given is made once, kept in
 * ~/.config/messaging-nats/ and taken from there ever after: with another subject it would be another
 * provider. With SOURCE_DATE_EPOCH the same input gives the same bytes; the time of signing is the only other
 * thing that goes in.
 *
 * Exit codes: 0 all well, 1 an archive that is not as it should be, or a file or key that cannot be used, 2
 * wrong usage.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>
#include <sodium.h>
#include <zlib.h> /* of Debian's zlib1g-dev */

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

enum {
    ENTRIES_MAX = 32,
    CLAIMS_MAX = 1 << 20,
    BINARY_MAX = 1 << 30,
    NAME_MAX_LEN = 99,
    KEY_PUBLIC_LEN = 56,
    KEY_SEED_LEN = 58,
    HASH_LEN = 64,
    TAR_BLOCK = 512,
    TRAILING_MAX = 1 << 20
};
#define TIME_MAX 077777777777 /* what a tar can hold: the year 2242 */

/* ---- 1 words ------------------------------------------------------------------------------------------- */

static const char help[] =
    "usage: par pack OUTPUT --name NAME --vendor VENDOR --version VERSION --revision N TARGET=BINARY...\n"
    "       par inspect FILE       print what an archive holds, and check all of it\n"
    "       par --help             this text\n"
    "\n"
    "pack writes a provider archive of wasmCloud, compressed if OUTPUT ends in .gz, for targets like\n"
    "x86_64-linux and aarch64-linux. It is signed with the seeds in PAR_ISSUER (an account, SA...) and\n"
    "PAR_SUBJECT (the provider, SV...), or in the files whose paths stand there; else with keys that are\n"
    "made once in ${XDG_CONFIG_HOME:-~/.config}/messaging-nats/. With SOURCE_DATE_EPOCH the same input\n"
    "gives the same bytes.\n"
    "Exit codes: 0 all well, 1 an archive, file or key that is not as it should be, 2 wrong usage.\n";

struct key {
    uint8_t public[crypto_sign_PUBLICKEYBYTES], secret[crypto_sign_SECRETKEYBYTES];
    char text[KEY_PUBLIC_LEN + 1]; /* the public key as an nkey */
};
static struct key issuer, subject;
static char unfinished[PATH_MAX]; /* a file that is not yet what its name says */

static void leave(void) {
    sodium_memzero(issuer.secret, sizeof(issuer.secret));
    sodium_memzero(subject.secret, sizeof(subject.secret));
    if (*unfinished) unlink(unfinished);
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("par: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

__attribute__((noreturn)) static void wrong_usage(const char *why) {
    fprintf(stderr, "par: %s\n%s", why, help);
    exit(2);
}

static void *must(void *memory) {
    if (!memory) die("out of memory");
    return memory;
}

__attribute__((format(printf, 3, 4))) static void compose(char *out, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int len = vsnprintf(out, size, format, args);
    va_end(args);
    if (len < 0 || (size_t)len >= size) die("a name is too long");
}

static bool ends_with(const char *text, const char *end) {
    size_t len = strlen(text), end_len = strlen(end);
    return len >= end_len && strcmp(text + len - end_len, end) == 0;
}

/* A whole number in decimal, nothing else, between 0 and `max`; -1 if it is none. */
static int64_t number(const char *text, int64_t max) {
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    return errno == 0 && *text >= '0' && *text <= '9' && *end == 0 && n <= max ? n : -1;
}

/* ---- 2 nkeys: base32 of prefix bytes, 32 key bytes and a CRC; see provider.c, on keys and secrets ------ */

static const char base32_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

struct sort {
    const char *whose, *begins, *variable, *file;
    uint8_t public, seed[2]; /* prefix bytes */
};
static const struct sort account = {
    .whose = "an account",
    .begins = "SA",
    .variable = "PAR_ISSUER",
    .file = "account.nk",
    .public = 0x00,
    .seed = {0x90, 0x00},
};
static const struct sort service = {
    .whose = "a provider",
    .begins = "SV",
    .variable = "PAR_SUBJECT",
    .file = "provider.nk",
    .public = 0xa8,
    .seed = {0x95, 0x40},
};

static uint16_t crc16(const uint8_t *bytes, size_t len) { /* XMODEM's */
    uint16_t crc = 0;
    for (size_t i = 0; i < 8 * len; i++) {
        if (i % 8 == 0) crc = (uint16_t)(crc ^ bytes[i / 8] << 8);
        crc = (uint16_t)(crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1);
    }
    return crc;
}

static void nkey_encode(const uint8_t *prefix, size_t prefix_len, const uint8_t key[32], char *text) {
    uint8_t raw[40] = {0};
    size_t len = prefix_len + 32, digits = (8 * (len + 2) + 4) / 5;
    memcpy(raw, prefix, prefix_len);
    memcpy(raw + prefix_len, key, 32);
    uint16_t crc = crc16(raw, len);
    raw[len] = (uint8_t)crc;
    raw[len + 1] = (uint8_t)(crc >> 8);
    for (size_t i = 0, bit = 0; i < digits; i++, bit += 5)
        text[i] = base32_digits[(raw[bit / 8] << 8 | raw[bit / 8 + 1]) >> (11 - bit % 8) & 31];
    text[digits] = 0;
    sodium_memzero(raw, sizeof(raw));
}

/* Decodes base32 without padding into `want` bytes, of which the last two are the CRC of the others. */
static bool nkey_decode(const char *text, uint8_t *out, size_t want) {
    uint32_t bits = 0;
    size_t have = 0, n = 0, len = strlen(text);
    if (len != (want * 8 + 4) / 5) return false;
    for (size_t i = 0; i < len; i++) {
        const char *digit = strchr(base32_digits, text[i]);
        if (!digit) return false;
        bits = bits << 5 | (uint32_t)(digit - base32_digits);
        have += 5;
        if (have < 8) continue;
        have -= 8;
        out[n++] = (uint8_t)(bits >> have);
    }
    return (bits & ((1u << have) - 1)) == 0 && crc16(out, want - 2) == (out[want - 2] | out[want - 1] << 8);
}

static bool nkey_public(const struct sort *sort, const char *text,
                        uint8_t public[crypto_sign_PUBLICKEYBYTES]) {
    uint8_t raw[35];
    if (!nkey_decode(text, raw, sizeof(raw)) || raw[0] != sort->public) return false;
    memcpy(public, raw + 1, crypto_sign_PUBLICKEYBYTES);
    return true;
}

static bool key_of_seed(struct key *key, const struct sort *sort, const char *seed) {
    uint8_t raw[36];
    bool ok = nkey_decode(seed, raw, sizeof(raw)) && memcmp(raw, sort->seed, 2) == 0;
    if (ok) {
        crypto_sign_seed_keypair(key->public, key->secret, raw + 2);
        nkey_encode(&sort->public, 1, key->public, key->text);
    }
    sodium_memzero(raw, sizeof(raw));
    return ok;
}

/* ---- 3 where the keys come from ------------------------------------------------------------------------ */

/* False: errno says why; EINVAL: the file holds something else. */
static bool key_of_file(struct key *key, const struct sort *sort, const char *path) {
    char text[128];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t len = read(fd, text, sizeof(text) - 1);
    int why = len < 0 ? errno : EINVAL;
    close(fd);
    text[len < 0 ? 0 : len] = 0;
    text[strcspn(text, " \t\r\n")] = 0;
    bool ok = key_of_seed(key, sort, text);
    sodium_memzero(text, sizeof(text));
    errno = why;
    return ok;
}

static void config_path(const struct sort *sort, char path[PATH_MAX]) {
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    if (config && *config == '/') compose(path, PATH_MAX, "%s/messaging-nats/%s", config, sort->file);
    else if (home && *home == '/') compose(path, PATH_MAX, "%s/.config/messaging-nats/%s", home, sort->file);
    else
        die("there is no HOME to keep keys in: set it, or give %s the seed of %s", sort->variable,
            sort->whose);
}

/* Makes a key that nobody but the user can read. It gets its name when it is whole: of two that make it at
 * once, one wins. */
static void key_make(const struct sort *sort, char path[PATH_MAX]) {
    uint8_t secret[32];
    char text[KEY_SEED_LEN + 2];
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0700) < 0 && errno != EEXIST) die("%s: %s", path, strerror(errno));
        *slash = '/';
    }
    compose(unfinished, sizeof(unfinished), "%s.XXXXXX", path);
    int fd = mkstemp(unfinished); /* has mode 0600 */
    if (fd < 0) {
        *unfinished = 0;
        die("%s: %s", path, strerror(errno));
    }
    randombytes_buf(secret, sizeof(secret));
    nkey_encode(sort->seed, 2, secret, text);
    text[KEY_SEED_LEN] = '\n';
    bool ok = write(fd, text, KEY_SEED_LEN + 1) == KEY_SEED_LEN + 1 && fsync(fd) == 0 &&
              (link(unfinished, path) == 0 || errno == EEXIST);
    sodium_memzero(secret, sizeof(secret));
    sodium_memzero(text, sizeof(text));
    if (!ok) die("%s: %s", path, strerror(errno));
    close(fd);
    unlink(unfinished);
    *unfinished = 0;
}

/* What stands in the variable is never printed: it may be a seed with a typing error. */
static void key_get(struct key *key, const struct sort *sort) {
    char path[PATH_MAX], *given = getenv(sort->variable);
    if (given && *given) {
        if (!key_of_seed(key, sort, given) && !key_of_file(key, sort, given))
            die("%s is neither the seed of %s (%s...) nor a file that holds one", sort->variable, sort->whose,
                sort->begins);
        sodium_memzero(given, strlen(given));
        return;
    }
    config_path(sort, path);
    if (key_of_file(key, sort, path)) return;
    if (errno == ENOENT) {
        key_make(sort, path);
        if (key_of_file(key, sort, path)) {
            printf("made the key of %s, %s: %s\n", sort->whose, key->text, path);
            return;
        }
    }
    die("%s: %s", path,
        errno == EINVAL ? "holds no seed of the right sort; it is made anew once it is gone"
                        : strerror(errno));
}

/* ---- 4 pack -------------------------------------------------------------------------------------------- */

static struct {
    char *output, *name, *vendor, *version;
    int64_t revision, time;
} want = {.revision = -1};

static struct target {
    const char *name;
    uint8_t *bytes;
    size_t len;
} targets[ENTRIES_MAX];
static size_t targets_count;

/* protocol: POSIX.1-1988, "ustar". Numbers are octal digits and a NUL. */
struct tar_header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[6],
        version[2], user[32], group[32], device[16], prefix[155], pad[12];
};
_Static_assert(sizeof(struct tar_header) == TAR_BLOCK, "a tar header is a block");

static void hash_words(const uint8_t digest[crypto_hash_sha256_BYTES], char text[HASH_LEN + 1]) {
    for (size_t i = 0; i < crypto_hash_sha256_BYTES; i++) (void)snprintf(text + 2 * i, 3, "%02X", digest[i]);
}

/* What a target may be called: a machine and a system. Then it is also no other entry's name, and harmless on
 * a terminal. */
static bool is_target(const char *name, size_t len) {
    size_t dashes = 0;
    for (size_t i = 0; i < len; i++) {
        char c = name[i];
        if (c == '-') dashes++;
        else if (c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9')) return false;
    }
    return dashes == 1 && len <= NAME_MAX_LEN - 4 && name[0] != '-' && name[len - 1] != '-';
}

static void target_read(struct target *t, const char *path) {
    struct stat about;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &about) < 0) die("%s: %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode) || about.st_size == 0 || about.st_size > BINARY_MAX)
        die("%s: is empty, too large, or no file", path);
    t->len = (size_t)about.st_size;
    t->bytes = must(malloc(t->len));
    for (size_t have = 0; have < t->len;) {
        ssize_t n = read(fd, t->bytes + have, t->len - have);
        if (n <= 0) die("%s: %s", path, n ? strerror(errno) : "became shorter while it was read");
        have += (size_t)n;
    }
    close(fd);
}

static void target_add(char *argument) {
    char *equals = strchr(argument, '=');
    if (!equals || !is_target(argument, (size_t)(equals - argument)))
        wrong_usage("a target is given as MACHINE-SYSTEM=BINARY, as in x86_64-linux=build/amd64/provider");
    *equals = 0;
    for (size_t i = 0; i < targets_count; i++)
        if (strcmp(targets[i].name, argument) == 0) wrong_usage("a target is given twice");
    if (targets_count == ENTRIES_MAX - 1) wrong_usage("too many targets");
    struct target *t = &targets[targets_count++];
    t->name = argument;
    target_read(t, equals + 1);
}

static char *base64url(const void *bytes, size_t len) {
    size_t room = sodium_base64_encoded_len(len, sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    char *text = must(malloc(room));
    return sodium_bin2base64(text, room, bytes, len, sodium_base64_VARIANT_URLSAFE_NO_PADDING);
}

/* The claims about the targets. Their number (jti) has to be one of a kind: it is the hash of the rest of
 * them. */
static json_t *make_claims(void) {
    uint8_t digest[crypto_hash_sha256_BYTES];
    char hash[HASH_LEN + 1];
    json_t *hashes = json_object();
    for (size_t i = 0; i < targets_count; i++) {
        crypto_hash_sha256(digest, targets[i].bytes, targets[i].len);
        hash_words(digest, hash);
        json_object_set_new(hashes, targets[i].name, json_string(hash));
    }
    json_t *claims = json_pack("{s:s, s:I, s:s, s:s, s:{s:s, s:s, s:I, s:s, s:o}, s:i}", "jti", "", "iat",
                               (json_int_t)want.time, "iss", issuer.text, "sub", subject.text, "wascap",
                               "name", want.name, "vendor", want.vendor, "rev", (json_int_t)want.revision,
                               "ver", want.version, "target_hashes", hashes, "wascap_revision", 3);
    if (!claims) die("the name, the vendor or the version is no UTF-8");
    char *text = must(json_dumps(claims, JSON_COMPACT));
    crypto_hash_sha256(digest, (uint8_t *)text, strlen(text));
    free(text);
    hash_words(digest, hash);
    hash[26] = 0;
    json_object_set_new(claims, "jti", json_string(hash));
    return claims;
}

/* protocol: RFC 7515 with an algorithm's name of NATS' own, which stands for EdDSA. */
static char *sign_claims(json_t *claims) {
    static const char head[] = "{\"typ\":\"jwt\",\"alg\":\"Ed25519\"}";
    uint8_t signature[crypto_sign_BYTES];
    char *text = must(json_dumps(claims, JSON_COMPACT)), *jwt, *whole;
    char *first = base64url(head, sizeof(head) - 1), *second = base64url(text, strlen(text));
    if (asprintf(&jwt, "%s.%s", first, second) < 0) die("out of memory");
    crypto_sign_detached(signature, NULL, (uint8_t *)jwt, strlen(jwt), issuer.secret);
    char *third = base64url(signature, sizeof(signature));
    if (asprintf(&whole, "%s.%s", jwt, third) < 0) die("out of memory");
    free(text);
    free(first);
    free(second);
    free(third);
    free(jwt);
    return whole;
}

static void octal(char *field, size_t size, uint64_t value) {
    field[size - 1] = 0;
    for (size_t i = size - 1; i-- > 0; value /= 8) field[i] = (char)('0' + value % 8);
}

static uint32_t tar_checksum(const struct tar_header *h) { /* as if the checksum were spaces */
    uint32_t sum = 8 * ' ';
    const uint8_t *bytes = (const uint8_t *)h;
    for (size_t i = 0; i < sizeof(*h); i++)
        if (i < offsetof(struct tar_header, checksum) || i >= offsetof(struct tar_header, type))
            sum += bytes[i];
    return sum;
}

static void put(gzFile out, const void *bytes, size_t len) {
    if (len && gzwrite(out, bytes, (unsigned)len) != (int)len) die("%s: %s", want.output, strerror(errno));
}

static void put_entry(gzFile out, const char *name, const char *end, uint64_t mode, const void *bytes,
                      size_t len) {
    static const uint8_t zeros[TAR_BLOCK];
    struct tar_header h = {
        .type = '0', .magic = "ustar", .version = {'0', '0'}
    };
    compose(h.name, sizeof(h.name), "%s%s", name, end);
    octal(h.mode, sizeof(h.mode), mode);
    octal(h.uid, sizeof(h.uid), 0);
    octal(h.gid, sizeof(h.gid), 0);
    octal(h.size, sizeof(h.size), len);
    octal(h.mtime, sizeof(h.mtime), (uint64_t)want.time);
    octal(h.device, 8, 0);
    octal(h.device + 8, 8, 0);
    octal(h.checksum, 7, tar_checksum(&h));
    h.checksum[7] = ' ';
    put(out, &h, sizeof(h));
    put(out, bytes, len);
    put(out, zeros, (TAR_BLOCK - len % TAR_BLOCK) % TAR_BLOCK);
}

/* Writes all of it beside the output, which it replaces when it is whole. */
static void write_archive(const char *jwt) {
    static const uint8_t end[2 * TAR_BLOCK];
    compose(unfinished, sizeof(unfinished), "%s.unfinished", want.output);
    gzFile out = gzopen(unfinished, ends_with(want.output, ".gz") ? "wb9" : "wbT"); /* T: as it is */
    if (!out) {
        *unfinished = 0;
        die("%s: %s", want.output, strerror(errno));
    }
    put_entry(out, "claims", ".jwt", 0644, jwt, strlen(jwt));
    for (size_t i = 0; i < targets_count; i++)
        put_entry(out, targets[i].name, ".bin", 0755, targets[i].bytes, targets[i].len);
    put(out, end, sizeof(end));
    if (gzclose(out) != Z_OK || rename(unfinished, want.output) < 0)
        die("%s: %s", want.output, strerror(errno));
    *unfinished = 0;
}

static void read_options(int argc, char **argv) {
    static const struct option options[] = {
        {"name",     required_argument, NULL, 'n'},
        {"vendor",   required_argument, NULL, 'v'},
        {"version",  required_argument, NULL, 'V'},
        {"revision", required_argument, NULL, 'r'},
        {NULL,       0,                 NULL, 0  }
    };
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 'n') want.name = optarg;
        else if (o == 'v') want.vendor = optarg;
        else if (o == 'V') want.version = optarg;
        else if (o == 'r') want.revision = number(optarg, INT32_MAX);
        else exit(2); /* getopt has said why */
    }
    if (!want.name || !want.vendor || !want.version || want.revision < 0)
        wrong_usage("pack needs --name, --vendor, --version, and a --revision of 0 or more");
    if (argc - optind < 2) wrong_usage("pack needs OUTPUT and at least one TARGET=BINARY");
    want.output = argv[optind++];
    while (optind < argc) target_add(argv[optind++]);
}

static int pack(int argc, char **argv) {
    const char *epoch = getenv("SOURCE_DATE_EPOCH");
    read_options(argc, argv);
    want.time = epoch ? number(epoch, TIME_MAX) : (int64_t)time(NULL);
    if (want.time < 0) die("SOURCE_DATE_EPOCH is no number of seconds");
    key_get(&issuer, &account);
    key_get(&subject, &service);
    json_t *claims = make_claims();
    char *jwt = sign_claims(claims);
    write_archive(jwt);
    printf("%s: provider %s, signed by %s\n", want.output, subject.text, issuer.text);
    free(jwt);
    json_decref(claims);
    return 0;
}

/* ---- 5 inspect: nothing in an archive is to be believed ------------------------------------------------ */

struct entry {
    char name[NAME_MAX_LEN + 1]; /* without .bin */
    uint64_t size;
    char hash[HASH_LEN + 1];
};

static struct {
    const char *path;
    gzFile file; /* reads what is not compressed as it is */
    struct entry entries[ENTRIES_MAX];
    size_t count;
    char *jwt;
    bool faults;
} archive;

/* Says what is wrong with the archive; false, for those who can only give up. */
__attribute__((format(printf, 1, 2))) static bool wrong(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "par: %s: ", archive.path);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    archive.faults = true;
    return false;
}

/* Reads all of it. */
static bool take(void *out, size_t len, const char *what) {
    int n = gzread(archive.file, out, (unsigned)len), error;
    if (n == (int)len) return true;
    const char *why = gzerror(archive.file, &error);
    if (n < 0 && error != Z_BUF_ERROR)
        return wrong("cannot be read: %s", error == Z_ERRNO ? strerror(errno) : why);
    return wrong("is cut short: it ends in %s", what);
}

static bool is_zero(const void *bytes, size_t len) { return sodium_is_zero(bytes, len) == 1; }

/* A number of a tar header: octal digits, and a NUL or a space if there is room. -1: it is none. */
static int64_t octal_value(const char *field, size_t size) {
    int64_t value = 0;
    size_t i = 0;
    while (i < size && field[i] == ' ') i++;
    if (i == size || field[i] < '0' || field[i] > '7') return -1;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) value = 8 * value + (field[i] - '0');
    return i == size || field[i] == 0 || field[i] == ' ' ? value : -1;
}

/* The sum of what follows, in passing. */
static bool hash_bytes(uint64_t len, char hash[HASH_LEN + 1]) {
    static uint8_t bytes[128 * TAR_BLOCK];
    uint8_t digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_state state;
    crypto_hash_sha256_init(&state);
    for (size_t n; len; len -= n) {
        n = len < sizeof(bytes) ? (size_t)len : sizeof(bytes);
        if (!take(bytes, n, "the middle of a binary")) return false;
        crypto_hash_sha256_update(&state, bytes, n);
    }
    crypto_hash_sha256_final(&state, digest);
    hash_words(digest, hash);
    return true;
}

static bool take_claims(uint64_t size) {
    if (archive.jwt) return wrong("holds claims.jwt twice");
    if (archive.count) wrong("claims.jwt is not the first of its files");
    if (size > CLAIMS_MAX) return wrong("its claims.jwt is too large");
    archive.jwt = must(calloc(1, size + 1));
    if (!take(archive.jwt, (size_t)size, "the middle of claims.jwt")) return false;
    return strlen(archive.jwt) == size || wrong("its claims.jwt is no text");
}

/* A host takes TARGET from "anything/TARGET.anything", and the last of two: only plain names, once, are
 * accepted here. */
static bool take_binary(const char *name, uint64_t size) {
    size_t len = strlen(name);
    bool world = strcmp(name, "world.wasm") == 0;
    if (!world && !(ends_with(name, ".bin") && is_target(name, len - 4)))
        return wrong("holds a file that is neither claims.jwt nor TARGET.bin nor world.wasm");
    if (archive.count == ENTRIES_MAX) return wrong("holds too many files");
    struct entry *e = &archive.entries[archive.count++];
    memcpy(e->name, name, world ? len : len - 4);
    for (const struct entry *other = archive.entries; other < e; other++)
        if (strcmp(other->name, e->name) == 0) return wrong("holds %s twice", name);
    e->size = size;
    return hash_bytes(size, e->hash);
}

/* What keeps a header of a file from being read, or NULL. */
static const char *header_fault(const struct tar_header *h) {
    int64_t size = octal_value(h->size, sizeof(h->size));
    if (octal_value(h->checksum, sizeof(h->checksum)) != tar_checksum(h))
        return archive.count || archive.jwt ? "a header in it is damaged" : "is no tar, nor a compressed one";
    if ((h->type != '0' && h->type != 0) || h->name[NAME_MAX_LEN] != 0)
        return "holds something that is no plain file with a short name";
    return size < 0 || size > BINARY_MAX ? "holds a file of an impossible size" : NULL;
}

/* One file of the tar. `end`: it was the end instead. */
static bool take_entry(bool *end) {
    struct tar_header h;
    uint8_t padding[TAR_BLOCK];
    if (!take(&h, sizeof(h), "the middle of a header, or has no end")) return false;
    if ((*end = is_zero(&h, sizeof(h)))) return true;
    const char *fault = header_fault(&h);
    if (fault) return wrong("%s", fault);
    uint64_t size = (uint64_t)octal_value(h.size, sizeof(h.size));
    if (!(strcmp(h.name, "claims.jwt") == 0 ? take_claims(size) : take_binary(h.name, size))) return false;
    return take(padding, (size_t)((TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK), "the padding of a file");
}

/* After the end come zeros. Reading them all is also what makes zlib compare its checksum. */
static bool take_end(void) {
    uint8_t bytes[TAR_BLOCK];
    size_t all = 0;
    int n, error;
    while ((n = gzread(archive.file, bytes, sizeof(bytes))) > 0) {
        all += (size_t)n;
        if (!is_zero(bytes, (size_t)n) || all > TRAILING_MAX) return wrong("goes on after its end");
    }
    const char *why = gzerror(archive.file, &error);
    if (n < 0 || error != Z_OK) return wrong("is damaged or cut short: %s", why);
    if (all < TAR_BLOCK) return wrong("is cut short: it has no end");
    return true;
}

static bool take_all(void) {
    bool end = false;
    archive.file = gzopen(archive.path, "rb");
    if (!archive.file) return wrong("%s", errno ? strerror(errno) : "out of memory");
    while (!end)
        if (!take_entry(&end)) return false;
    return take_end();
}

/* ---- 6 the claims -------------------------------------------------------------------------------------- */

/* Decodes a part of a JWT and adds a NUL. NULL: it is no base64url. */
static uint8_t *part_of_jwt(const char *text, size_t len, size_t *out_len) {
    uint8_t *out = must(malloc(len + 1));
    if (sodium_base642bin(out, len, text, len, NULL, out_len, NULL,
                          sodium_base64_VARIANT_URLSAFE_NO_PADDING) == 0) {
        out[*out_len] = 0;
        return out;
    }
    free(out);
    return NULL;
}

static json_t *json_of_jwt(const char *text, size_t len) {
    size_t out_len;
    uint8_t *bytes = part_of_jwt(text, len, &out_len);
    json_t *json = bytes ? json_loadb((char *)bytes, out_len, JSON_REJECT_DUPLICATES, NULL) : NULL;
    free(bytes);
    return json;
}

/* A string as JSON in ASCII, so that it can do nothing to a terminal. */
static void print_text(const char *label, const json_t *value) {
    char *text = value ? must(json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII)) : NULL;
    printf("%-12s %s\n", label, text ? text : "none");
    free(text);
}

static void print_time(const char *label, json_int_t at) {
    char text[64] = "at an impossible time";
    struct tm parts;
    time_t seconds = (time_t)at;
    if (at >= 0 && at <= TIME_MAX && gmtime_r(&seconds, &parts))
        (void)strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &parts);
    printf("%-12s %s\n", label, text);
}

static bool check_signature(const char *signer, const char *jwt, size_t signed_len, const char *third) {
    uint8_t public[crypto_sign_PUBLICKEYBYTES];
    size_t len = 0;
    uint8_t *signature = part_of_jwt(third, strlen(third), &len);
    bool known = nkey_public(&account, signer, public);
    bool ok = known && signature && len == crypto_sign_BYTES &&
              crypto_sign_verify_detached(signature, (const uint8_t *)jwt, signed_len, public) == 0;
    free(signature);
    if (!known) return wrong("the issuer is no public key of an account (A...)");
    printf("%-12s %s\n%-12s %s\n", "signed by", signer, "signature", ok ? "right" : "WRONG");
    if (ok) return true;
    return wrong("the signature is not that of %s: the claims were changed after they were signed, or the "
                 "key is another",
                 signer);
}

static void check_times(const json_t *claims) {
    json_t *from = json_object_get(claims, "nbf"), *until = json_object_get(claims, "exp");
    json_int_t now = (json_int_t)time(NULL);
    print_time("signed at", json_integer_value(json_object_get(claims, "iat")));
    if (from) print_time("valid from", json_integer_value(from));
    if (until) print_time("valid until", json_integer_value(until));
    if (from && json_integer_value(from) > now) wrong("its claims are not yet valid");
    if (until && json_integer_value(until) < now) wrong("its claims are no longer valid");
}

/* Each file against the claims, each claim against the files. */
static void check_targets(json_t *hashes) {
    const char *name;
    json_t *value;
    size_t named = 0;
    for (size_t i = 0; i < archive.count; i++) {
        const struct entry *e = &archive.entries[i];
        const char *claimed = json_string_value(json_object_get(hashes, e->name));
        bool same = claimed && strcmp(claimed, e->hash) == 0;
        if (claimed) named++;
        printf("%-12s %s, %llu bytes, SHA-256 %s: %s\n", i ? "" : "holds", e->name,
               (unsigned long long)e->size, e->hash,
               same      ? "as claimed"
               : claimed ? "NOT as claimed"
                         : "NOT CLAIMED");
        if (!claimed) wrong("the claims have no hash for %s", e->name);
        else if (!same) wrong("%s is not the file that was signed", e->name);
    }
    if (json_is_object(hashes) && named == json_object_size(hashes)) return;
    json_t *all = json_array();
    json_object_foreach(hashes, name, value) json_array_append_new(all, json_string(name));
    print_text("claimed", all);
    json_decref(all);
    wrong("the claims name a target that it does not hold");
}

static bool check_head(const char *text, size_t len) {
    const char *type, *algorithm;
    json_t *head = json_of_jwt(text, len);
    bool ok = head && json_unpack(head, "{s:s, s:s}", "typ", &type, "alg", &algorithm) == 0 &&
              strcmp(type, "jwt") == 0 && strcmp(algorithm, "Ed25519") == 0;
    json_decref(head);
    return ok || wrong("its claims.jwt does not begin with the header of an Ed25519 JWT");
}

/* What other tools will want of the claims. protocol: wascap, jwt.rs: Claims<CapabilityProvider>. */
static bool check_claims(json_t *claims) {
    const char *id, *by, *whose, *name, *vendor, *version = NULL;
    json_int_t at, time_of, revision = 0;
    json_t *hashes, *wascap = json_object_get(claims, "wascap");
    json_error_t error;
    uint8_t public[crypto_sign_PUBLICKEYBYTES];
    if (json_unpack_ex(claims, &error, 0, "{s:s, s:s, s:s, s:I, s?I, s?I, s:{s:s, s:s, s?s, s?I, s:o}}",
                       "jti", &id, "iss", &by, "sub", &whose, "iat", &at, "nbf", &time_of, "exp", &time_of,
                       "wascap", "name", &name, "vendor", &vendor, "ver", &version, "rev", &revision,
                       "target_hashes", &hashes) < 0)
        return wrong("its claims are not those of a provider: %s", error.text);
    print_text("name", json_object_get(wascap, "name"));
    print_text("vendor", json_object_get(wascap, "vendor"));
    print_text("version", json_object_get(wascap, "ver"));
    print_text("revision", json_object_get(wascap, "rev"));
    if (revision < INT32_MIN || revision > INT32_MAX) wrong("its revision is too large for other tools");
    if (nkey_public(&service, whose, public)) printf("%-12s %s\n", "provider", whose);
    else wrong("the subject is no public key of a provider (V...)");
    check_times(claims);
    check_targets(hashes);
    return true;
}

static bool check_jwt(const char *jwt) {
    const char *second = strchr(jwt, '.'), *third = second ? strchr(second + 1, '.') : NULL;
    if (!third || strchr(third + 1, '.'))
        return wrong("its claims.jwt is no JWT, which has three parts with dots between them");
    if (!check_head(jwt, (size_t)(second - jwt))) return false;
    json_t *claims = json_of_jwt(second + 1, (size_t)(third - second - 1));
    if (!claims) return wrong("its claims are no JSON in base64url");
    bool ok = check_claims(claims) && check_signature(json_string_value(json_object_get(claims, "iss")), jwt,
                                                      (size_t)(third - jwt), third + 1);
    json_decref(claims);
    return ok;
}

static int inspect(const char *path) {
    archive.path = path;
    bool whole = take_all();
    if (archive.file) gzclose(archive.file);
    if (whole && !archive.jwt) wrong("holds no claims.jwt");
    if (whole && !archive.count) wrong("holds no binary");
    if (whole && archive.jwt) check_jwt(archive.jwt);
    free(archive.jwt);
    return archive.faults;
}

int main(int argc, char **argv) {
    int result = 0;
    if (sodium_init() < 0 || atexit(leave) != 0) die("cannot start");
    if (argc == 2 && strcmp(argv[1], "--help") == 0) fputs(help, stdout);
    else if (argc == 3 && strcmp(argv[1], "inspect") == 0) result = inspect(argv[2]);
    else if (argc >= 2 && strcmp(argv[1], "pack") == 0) result = pack(argc - 1, argv + 1);
    else wrong_usage("it is either pack or inspect FILE");
    if (fflush(stdout) != 0) die("standard output: %s", strerror(errno));
    return result;
}
