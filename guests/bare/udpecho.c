/* udpecho: a network guest in one file.
 *
 * Finds a virtio network device on PCI, answers ARP for 10.77.0.2, ping (ICMP echo) and UDP echo on
 * port 7 (RFC 862), and sleeps in between.  Everything else on the wire is ignored.
 *
 * Follows: virtio 1.2, sections 2.7 (split virtqueues), 4.1 (PCI transport), 5.1 (network device);
 * RFC 826 (ARP), 791 (IPv4), 792 (ICMP), 768 (UDP).
 * Left out: offloads, MSI-X (the device's INTx line is enough), fragments, a second network device.
 */
#include "pc.h"

/* ---- wire formats: big-endian on the wire, little-endian here ---- */

struct ethernet { uint8_t to[6], from[6]; uint16_t type; } __attribute__((packed));
struct arp {
    uint16_t hardware, protocol;
    uint8_t hardware_size, protocol_size;
    uint16_t operation;
    uint8_t sender_mac[6], sender_ip[4], target_mac[6], target_ip[4];
} __attribute__((packed));
struct ipv4 {
    uint8_t version_words, service;
    uint16_t length, identification, fragment;
    uint8_t ttl, protocol;
    uint16_t checksum;
    uint8_t from[4], to[4];
} __attribute__((packed));
struct icmp { uint8_t type, code; uint16_t checksum; } __attribute__((packed));
struct udp { uint16_t from, to, length, checksum; } __attribute__((packed));

#define BE16(value) ((uint16_t)((value) >> 8 | ((value) & 0xFF) << 8))

enum {
    TYPE_ARP = BE16(0x0806), TYPE_IPV4 = BE16(0x0800),
    ARP_ETHERNET = BE16(1), ARP_REQUEST = BE16(1), ARP_REPLY = BE16(2),
    FRAGMENT_MASK = BE16(0x3FFF),       /* more-fragments and the offset */
    PROTOCOL_ICMP = 1, PROTOCOL_UDP = 17,
    ICMP_ECHO = 8, ICMP_ECHO_REPLY = 0,
    ECHO_PORT = BE16(7),
};

static const uint8_t our_ip[4] = {10, 77, 0, 2};
static uint8_t our_mac[6] = {0x52, 0x54, 0x00, 0xC0, 0x10, 0x02};      /* unless the device has one */

static int same(const void *a, const void *b, unsigned bytes)
{
    const uint8_t *x = a, *y = b;
    while (bytes--)
        if (*x++ != *y++)
            return 0;
    return 1;
}

static void copy(void *to, const void *from, unsigned bytes)
{
    uint8_t *x = to;
    const uint8_t *y = from;
    while (bytes--)
        *x++ = *y++;
}

static void swap(void *a, void *b, unsigned bytes)
{
    uint8_t *x = a, *y = b;
    while (bytes--) {
        uint8_t byte = *x;
        *x++ = *y;
        *y++ = byte;
    }
}

/* ---- answers: each turns a frame into its reply in place; 0 means there is none ---- */

static int answer_arp(uint8_t *frame, unsigned length)
{
    struct arp *arp = (struct arp *)(frame + sizeof(struct ethernet));
    if (length < sizeof(struct ethernet) + sizeof *arp)
        return 0;
    if (arp->hardware != ARP_ETHERNET || arp->protocol != TYPE_IPV4 || arp->operation != ARP_REQUEST)
        return 0;
    if (!same(arp->target_ip, our_ip, 4))
        return 0;
    arp->operation = ARP_REPLY;
    copy(arp->target_mac, arp->sender_mac, 6);
    copy(arp->sender_mac, our_mac, 6);
    swap(arp->sender_ip, arp->target_ip, 4);
    return 1;
}

static int answer_icmp(struct icmp *icmp, unsigned length)
{
    if (length < sizeof *icmp || icmp->type != ICMP_ECHO)
        return 0;
    icmp->type = ICMP_ECHO_REPLY;
    /* The first word of the message fell by 0x0800: its complement sum rises by as much (RFC 1624). */
    uint32_t sum = BE16(icmp->checksum) + (ICMP_ECHO << 8);
    sum = (sum & 0xFFFF) + (sum >> 16);
    icmp->checksum = BE16(sum);
    return 1;
}

static int answer_udp(struct udp *udp, unsigned length)
{
    if (length < sizeof *udp || udp->to != ECHO_PORT || BE16(udp->length) > length)
        return 0;
    swap(&udp->from, &udp->to, 2);
    return 1;
}

/* Swapping two addresses or two ports leaves a ones' complement sum as it is, so the checksums that
 * arrived are right for the answer too. */
static int answer_ipv4(uint8_t *frame, unsigned length)
{
    struct ipv4 *ip = (struct ipv4 *)(frame + sizeof(struct ethernet));
    unsigned available = length - sizeof(struct ethernet);
    if (length < sizeof(struct ethernet) + sizeof *ip)
        return 0;
    unsigned header = (ip->version_words & 15) * 4u, total = BE16(ip->length);
    if (ip->version_words >> 4 != 4 || header < sizeof *ip || header > total || total > available)
        return 0;
    if (!same(ip->to, our_ip, 4) || ip->fragment & FRAGMENT_MASK)
        return 0;
    void *payload = (uint8_t *)ip + header;
    int answered = ip->protocol == PROTOCOL_ICMP ? answer_icmp(payload, total - header)
                 : ip->protocol == PROTOCOL_UDP  ? answer_udp(payload, total - header)
                                                 : 0;
    swap(ip->from, ip->to, 4);
    return answered;
}

static int answer(uint8_t *frame, unsigned length)
{
    struct ethernet *ethernet = (struct ethernet *)frame;
    if (length < sizeof *ethernet)
        return 0;
    int answered = ethernet->type == TYPE_ARP    ? answer_arp(frame, length)
                 : ethernet->type == TYPE_IPV4 ? answer_ipv4(frame, length)
                                               : 0;
    copy(ethernet->to, ethernet->from, 6);
    copy(ethernet->from, our_mac, 6);
    return answered;
}

/* ---- PCI configuration space, mechanism 1 (PCI 3.0, section 3.2.2.3.2) ---- */

enum {
    CONFIG_ADDRESS = 0xCF8, CONFIG_DATA = 0xCFC,
    PCI_ID = 0x00, PCI_COMMAND = 0x04, PCI_BAR0 = 0x10, PCI_CAPABILITIES = 0x34,
    COMMAND_MEMORY_MASTER = 0x06,
    STATUS_HAS_CAPABILITIES = 1 << 20,
    CAPABILITY_VENDOR = 0x09,
    CAPABILITY_LIMIT = 48,              /* as many as fit in 192 bytes: a longer list is a loop */
    VIRTIO_NET_MODERN = 0x10411AF4, VIRTIO_NET_TRANSITIONAL = 0x10001AF4,
    PCI_LINES = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 11,    /* what a PC gives PCI devices */
};

static uint32_t pci_read(unsigned device, unsigned offset)
{
    out32(CONFIG_ADDRESS, 0x80000000 | device << 11 | (offset & ~3u));
    return in32(CONFIG_DATA);
}

static void pci_write(unsigned device, unsigned offset, uint32_t value)
{
    out32(CONFIG_ADDRESS, 0x80000000 | device << 11 | (offset & ~3u));
    out32(CONFIG_DATA, value);
}

static uint8_t pci_read8(unsigned device, unsigned offset)
{
    return (uint8_t)(pci_read(device, offset) >> 8 * (offset & 3));
}

static unsigned find_network_device(void)
{
    for (unsigned device = 0; device < 32; device++) {
        uint32_t id = pci_read(device, PCI_ID);
        if (id == VIRTIO_NET_MODERN || id == VIRTIO_NET_TRANSITIONAL)
            return device;
    }
    fail("no virtio network device on PCI bus 0");
}

/* ---- the virtio device ---- */

struct common {                         /* 4.1.4.3 */
    uint32_t device_feature_select, device_feature, driver_feature_select, driver_feature;
    uint16_t config_msix_vector, num_queues;
    uint8_t device_status, config_generation;
    uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    uint32_t queue_desc[2], queue_driver[2], queue_device[2];
};

enum {
    COMMON_CFG = 1, NOTIFY_CFG = 2, ISR_CFG = 3, DEVICE_CFG = 4,        /* 4.1.4 */
    STATUS_ACKNOWLEDGE = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4, STATUS_FEATURES_OK = 8,
    FEATURE_MAC = 1 << 5, FEATURE_VERSION_1 = 1 << 0,                   /* of words 0 and 1 */
    DESCRIPTOR_WRITE = 2,               /* the device writes this buffer */
    QUEUE_SIZE = 16,
    BUFFER_BYTES = 2048,
    NET_HEADER_BYTES = 12,              /* 5.1.6: all zero without offloads */
};

struct queue {                          /* 2.7; one page holds the three parts, aligned 16, 2 and 4 */
    struct { uint32_t address, address_high, length; uint16_t flags, next; } desc[QUEUE_SIZE];
    struct { uint16_t flags, index, ring[QUEUE_SIZE], used_event; } available;
    struct { uint16_t flags, index; struct { uint32_t id, length; } ring[QUEUE_SIZE]; } used
        __attribute__((aligned(4)));
    uint16_t seen;                      /* ours: how far we have read the used ring */
    volatile uint16_t *doorbell;
    uint16_t number;
} __attribute__((aligned(4096)));

enum { RECEIVE, TRANSMIT, QUEUES };

static struct queue queues[QUEUES];
static uint8_t buffers[QUEUES][QUEUE_SIZE][BUFFER_BYTES] __attribute__((aligned(16)));
static volatile struct common *common;
static volatile uint8_t *isr, *device_config, *doorbells;
static uint32_t doorbell_step;

/* Order of our accesses to memory that the device shares (2.7.13): x86 keeps it, the compiler may not. */
static inline void barrier(void)
{
    __asm__ volatile("lock; addl $0, (%%esp)" : : : "memory");
}

/* Where capability `at` points: BAR base plus offset (4.1.4); 0 if that is not 32-bit memory. */
static volatile uint8_t *mapped(unsigned device, unsigned at)
{
    unsigned bar = pci_read8(device, at + 4);
    uint32_t base = bar < 6 ? pci_read(device, PCI_BAR0 + 4 * bar) : 0;
    int wide = (base & 6) == 4;
    if (base & 1 || (base & ~15u) == 0 || (wide && pci_read(device, PCI_BAR0 + 4 * bar + 4)))
        return 0;
    return (volatile uint8_t *)((base & ~15u) + pci_read(device, at + 8));
}

/* A device may offer one structure several times, best first: take the first that we can use (4.1.4.1). */
static void find_registers(unsigned device)
{
    pci_write(device, PCI_COMMAND, (pci_read(device, PCI_COMMAND) & 0xFFFF) | COMMAND_MEMORY_MASTER);
    unsigned at = pci_read(device, PCI_COMMAND) & STATUS_HAS_CAPABILITIES
                ? pci_read8(device, PCI_CAPABILITIES) : 0;
    for (unsigned n = 0; at && n < CAPABILITY_LIMIT; n++, at = pci_read8(device, at + 1)) {
        if (pci_read8(device, at) != CAPABILITY_VENDOR)
            continue;
        unsigned kind = pci_read8(device, at + 3);
        volatile uint8_t *found = mapped(device, at);
        if (kind == COMMON_CFG && !common) {
            common = (volatile struct common *)found;
        } else if (kind == ISR_CFG && !isr) {
            isr = found;
        } else if (kind == DEVICE_CFG && !device_config) {
            device_config = found;
        } else if (kind == NOTIFY_CFG && !doorbells) {
            doorbells = found;
            doorbell_step = pci_read(device, at + 16);
        }
    }
    if (!common || !isr || !device_config || !doorbells)
        fail("the network device has no virtio 1.x registers in 32-bit memory");
}

/* 3.1.1, steps 1 to 6.  Only a MAC address and the 1.x layout are wanted. */
static void negotiate(void)
{
    common->device_status = 0;
    while (common->device_status)
        ;
    common->device_status = STATUS_ACKNOWLEDGE;
    common->device_status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
    common->device_feature_select = 0;
    uint32_t features = common->device_feature & FEATURE_MAC;
    common->driver_feature_select = 0;
    common->driver_feature = features;
    common->driver_feature_select = 1;
    common->driver_feature = FEATURE_VERSION_1;
    common->device_status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
    if (!(common->device_status & STATUS_FEATURES_OK))
        fail("the network device refuses virtio 1.x");
    for (unsigned i = 0; i < 6 && features & FEATURE_MAC; i++)
        our_mac[i] = device_config[i];
}

static void start_queue(unsigned number)
{
    struct queue *queue = &queues[number];
    common->queue_select = (uint16_t)number;
    if (common->queue_size < QUEUE_SIZE)
        fail("a virtqueue of the network device is too small");
    common->queue_size = QUEUE_SIZE;
    common->queue_desc[0] = (uint32_t)queue->desc;
    common->queue_desc[1] = 0;
    common->queue_driver[0] = (uint32_t)&queue->available;
    common->queue_driver[1] = 0;
    common->queue_device[0] = (uint32_t)&queue->used;
    common->queue_device[1] = 0;
    queue->number = (uint16_t)number;
    queue->doorbell = (volatile uint16_t *)(doorbells + common->queue_notify_off * doorbell_step);
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        queue->desc[i].address = (uint32_t)buffers[number][i];
        queue->desc[i].length = BUFFER_BYTES;
        queue->desc[i].flags = number == RECEIVE ? DESCRIPTOR_WRITE : 0;
    }
    common->queue_enable = 1;
}

/* Offer buffer `id` to the device (2.7.13). */
static void offer(struct queue *queue, unsigned id)
{
    queue->available.ring[queue->available.index % QUEUE_SIZE] = (uint16_t)id;
    barrier();
    queue->available.index++;
    barrier();
    *queue->doorbell = queue->number;
}

/* Has the device used a buffer that we have not looked at? */
static int used_one(struct queue *queue)
{
    return *(volatile uint16_t *)&queue->used.index != queue->seen;
}

/* A wire sends in order, so buffers come back in the order in which they were offered: the next to
 * fill is free as soon as fewer than all are under way. */
static void send(const uint8_t *frame, unsigned length)
{
    struct queue *queue = &queues[TRANSMIT];
    while (used_one(queue))
        queue->seen++;
    if ((uint16_t)(queue->available.index - queue->seen) == QUEUE_SIZE)
        return;                         /* the wire is full: UDP may lose a packet */
    unsigned id = queue->available.index % QUEUE_SIZE;
    copy(buffers[TRANSMIT][id] + NET_HEADER_BYTES, frame, length);
    queue->desc[id].length = NET_HEADER_BYTES + length;
    offer(queue, id);
}

static void receive_all(void)
{
    struct queue *queue = &queues[RECEIVE];
    while (used_one(queue)) {
        barrier();
        unsigned slot = queue->seen++ % QUEUE_SIZE;
        unsigned id = queue->used.ring[slot].id, length = queue->used.ring[slot].length;
        if (id >= QUEUE_SIZE || length > BUFFER_BYTES)
            fail("the network device used a buffer that it was not given");
        uint8_t *frame = buffers[RECEIVE][id] + NET_HEADER_BYTES;
        if (length > NET_HEADER_BYTES && answer(frame, length - NET_HEADER_BYTES))
            send(frame, length - NET_HEADER_BYTES);
        offer(queue, id);
    }
}

/* Reading the ISR lowers the line (4.1.4.5), so that the 8259 does not see it again. */
void interrupt(unsigned line)
{
    (void)*isr;
    pics_acknowledge(line);
}

void main(const uint32_t *info)
{
    (void)info;
    unsigned device = find_network_device();
    find_registers(device);
    pics_start(PCI_LINES);
    negotiate();
    for (unsigned number = 0; number < QUEUES; number++)
        start_queue(number);
    common->device_status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK;
    for (unsigned id = 0; id < QUEUE_SIZE; id++)
        offer(&queues[RECEIVE], id);
    print("GUEST-READY udpecho 10.77.0.2 port 7\r\n");
    for (;;) {
        receive_all();
        wait_for_interrupt();
    }
}
