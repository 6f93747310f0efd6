/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <jansson.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "service/contact.h"

enum { RANKS_MAX = 4096 };

/* ------------------------------------------------------------- contact file */

const char *service_contacts_path(const char *given)
{
    const char *path = given && *given ? given : getenv("LODEMARK_CLUSTER");
    return path && *path ? path : NULL;
}

static json_t *contacts_to_json(const service_contact_t *ranks, uint32_t count)
{
    json_t *list = json_array();
    for (uint32_t i = 0; list && i < count; i++)
        json_array_append_new(list, json_pack("{s:i,s:s,s:s,s:i}", "rank", (int)ranks[i].rank, "host", ranks[i].host,
                                              "address", ranks[i].address, "port", (int)ranks[i].port));
    return json_pack("{s:i,s:i,s:o}", "lodemark", 1, "protocol", SESSION_NEWEST, "ranks", list);
}

lode_status_t service_contacts_write(const char *path, const service_contact_t *ranks, uint32_t count)
{
    char draft[4096];
    if (snprintf(draft, sizeof draft, "%s.%ld", path, (long)getpid()) >= (int)sizeof draft)
        return lode_fail(LODE_ERR_INVALID, "the path of the contact file is too long");
    json_t *root = contacts_to_json(ranks, count);
    if (!root)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a contact file");
    int wrong = json_dump_file(root, draft, JSON_INDENT(2));
    json_decref(root);
    if (wrong || chmod(draft, 0644) != 0 || rename(draft, path) != 0) {
        lode_status_t status = lode_fail(LODE_ERR_IO, "contact file %s cannot be written: %s", path, strerror(errno));
        unlink(draft);
        return status;
    }
    return LODE_OK;
}

static bool contact_of_json(json_t *entry, service_contact_t *contact)
{
    const char *host, *address;
    int rank, port;
    struct in_addr ignored;
    if (json_unpack(entry, "{s:i,s:s,s:s,s:i}", "rank", &rank, "host", &host, "address", &address, "port", &port) != 0)
        return false;
    if (rank < 0 || rank > RANKS_MAX || port <= 0 || port > UINT16_MAX || strlen(host) >= sizeof contact->host ||
        !session_text_is_fine(host) || inet_pton(AF_INET, address, &ignored) != 1)
        return false;
    *contact = (service_contact_t){.rank = (uint32_t)rank, .port = (uint32_t)port};
    snprintf(contact->host, sizeof contact->host, "%s", host);
    snprintf(contact->address, sizeof contact->address, "%s", address);
    return true;
}

static lode_status_t contacts_of_json(const char *path, json_t *root, service_contact_t **out, uint32_t *count)
{
    json_t *list = json_object_get(root, "ranks");
    size_t n = json_array_size(list);
    if (json_integer_value(json_object_get(root, "lodemark")) != 1 || n == 0 || n > RANKS_MAX)
        return lode_fail(LODE_ERR_FORMAT, "%s is no contact file of Lodemark", path);
    service_contact_t *ranks = calloc(n, sizeof *ranks);
    if (!ranks)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a contact file");
    for (size_t i = 0; i < n; i++)
        if (!contact_of_json(json_array_get(list, i), &ranks[i])) {
            free(ranks);
            return lode_fail(LODE_ERR_FORMAT, "contact file %s: entry %zu of its ranks makes no sense", path, i);
        }
    *out = ranks;
    *count = (uint32_t)n;
    return LODE_OK;
}

lode_status_t service_contacts_read(const char *path, service_contact_t **ranks, uint32_t *count)
{
    json_error_t error;
    if (access(path, R_OK) != 0)
        return lode_fail(LODE_ERR_IO, "contact file %s cannot be read: %s; lodemarkd writes it by --contact", path,
                         strerror(errno));
    json_t *root = json_load_file(path, 0, &error);
    if (!root)
        return lode_fail(LODE_ERR_FORMAT, "contact file %s, line %d: %s", path, error.line, error.text);
    lode_status_t status = contacts_of_json(path, root, ranks, count);
    json_decref(root);
    return status;
}

/* -------------------------------------------------------------------- token */

static lode_status_t token_of_text(const char *text, size_t length, const char *where, service_token_t *token)
{
    while (length && (text[length - 1] == '\n' || text[length - 1] == '\r'))
        length--;
    if (length < 16 || length > SESSION_TOKEN_MAX)
        return lode_fail(LODE_ERR_FORMAT, "the token of %s has %zu bytes: 16 to %d are taken", where, length,
                         SESSION_TOKEN_MAX);
    memcpy(token->bytes, text, length);
    token->length = (uint32_t)length;
    return LODE_OK;
}

static lode_status_t token_read(int fd, const char *path, service_token_t *token)
{
    char text[SESSION_TOKEN_MAX + 3];
    ssize_t length = read(fd, text, sizeof text);
    if (length < 0)
        return lode_fail(LODE_ERR_IO, "token file %s: %s", path, strerror(errno));
    return token_of_text(text, (size_t)length, path, token);
}

static lode_status_t token_make(const char *path, service_token_t *token)
{
    uint8_t secret[32];
    char text[2 * sizeof secret + 2];
    if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret)
        return lode_fail(LODE_ERR_IO, "the system gave no random bytes for a token: %s", strerror(errno));
    for (size_t i = 0; i < sizeof secret; i++)
        snprintf(text + 2 * i, 3, "%02x", secret[i]);
    strcat(text, "\n");
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t length = (ssize_t)strlen(text);
    bool written = fd >= 0 && write(fd, text, (size_t)length) == length;
    int cause = errno;
    if (fd >= 0 && close(fd) != 0 && written) {
        written = false;
        cause = errno;
    }
    if (!written)
        return lode_fail(LODE_ERR_IO, "token file %s cannot be made: %s", path, strerror(cause));
    return token_of_text(text, (size_t)length, path, token);
}

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

lode_status_t service_token_get(const char *file, bool make, service_token_t *token)
{
    const char *path = file && *file ? file : variable("LODEMARK_TOKEN_FILE"), *text = variable("LODEMARK_TOKEN");
    if (!path && text)
        return token_of_text(text, strlen(text), "LODEMARK_TOKEN", token);
    if (!path)
        return lode_fail(LODE_ERR_REFUSED, "a service asks for a token: --token-file FILE, LODEMARK_TOKEN_FILE or "
                                           "LODEMARK_TOKEN says which");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && make)
        return token_make(path, token);
    if (fd < 0)
        return lode_fail(LODE_ERR_IO, "token file %s cannot be read: %s", path, strerror(errno));
    lode_status_t status = token_read(fd, path, token);
    close(fd);
    return status;
}

bool service_token_equal(const service_token_t *token, const void *bytes, size_t length)
{
    const volatile uint8_t *mine = token->bytes, *theirs = bytes;
    uint32_t differs = token->length ^ (uint32_t)length;
    for (size_t i = 0; i < length; i++)
        differs |= mine[i % SESSION_TOKEN_MAX] ^ theirs[i];
    return differs == 0;
}

/* ------------------------------------------------------------------ address */

/* This host's first address in a network, or with @p outside, one that others can reach. */
static bool own_address(uint32_t network, uint32_t mask, bool outside, char address[64])
{
    struct ifaddrs *all;
    bool found = false;
    if (getifaddrs(&all) != 0)
        return false;
    for (struct ifaddrs *one = all; one && !found; one = one->ifa_next) {
        if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET || !(one->ifa_flags & IFF_UP) ||
            (outside && (one->ifa_flags & IFF_LOOPBACK)))
            continue;
        struct sockaddr_in at;
        memcpy(&at, one->ifa_addr, sizeof at);
        found = (ntohl(at.sin_addr.s_addr) & mask) == network && inet_ntop(AF_INET, &at.sin_addr, address, 64);
    }
    freeifaddrs(all);
    return found;
}

static lode_status_t resolve(const char *text, const char *slash, struct in_addr at, char bind[64], char advertise[64])
{
    uint64_t bits = 32;
    inet_ntop(AF_INET, &at, bind, 64);
    if (slash) {
        if (lode_parse_count(slash + 1, &bits) != LODE_OK || bits > 32)
            return lode_fail(LODE_ERR_INVALID, "\"%s\": a network is ADDRESS/BITS with 0 to 32 bits", text);
        uint32_t mask = bits ? UINT32_MAX << (32 - bits) : 0;
        if (!own_address(ntohl(at.s_addr) & mask, mask, false, bind))
            return lode_fail(LODE_ERR_INVALID, "\"%s\": this host has no address in that network", text);
    }
    if (!slash && at.s_addr == INADDR_ANY) {
        if (!own_address(0, 0, true, advertise))
            strcpy(advertise, "127.0.0.1");
    } else {
        memcpy(advertise, bind, 64);
    }
    return LODE_OK;
}

lode_status_t service_address_parse(const char *text, char bind[64], char advertise[64], uint16_t *port)
{
    char copy[64];
    uint64_t number = 0;
    struct in_addr at;
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return lode_fail(LODE_ERR_INVALID, "an address of %zu bytes is too long", strlen(text));
    char *colon = strchr(copy, ':'), *slash = strchr(copy, '/');
    if (colon)
        *colon = '\0';
    if (slash)
        *slash = '\0';
    if (colon && (lode_parse_count(colon + 1, &number) != LODE_OK || number > UINT16_MAX))
        return lode_fail(LODE_ERR_INVALID, "\"%s\": a port is a number up to 65535", text);
    if (inet_pton(AF_INET, copy, &at) != 1)
        return lode_fail(LODE_ERR_INVALID, "\"%s\" is no IPv4 address: write 127.0.0.1, 10.0.0.0/8 or 0.0.0.0:7700",
                         text);
    LODE_TRY(resolve(text, slash, at, bind, advertise));
    *port = (uint16_t)number;
    return LODE_OK;
}
