/*
 * Shows the reverse map of anonymous memory. Three programs, loaded by oracle/live/rmap_probe.py:
 *
 *   vmas        for each VMA in [low, high): its range, its anon_vma with the counters, its chain
 *   page_cache  for the VMA that starts at low: the first entry of its file's page cache
 *   folios      for each frame asked for: folio->mapping and ->index
 *
 * They read and change nothing. Structures are declared with the fields that are used; at load time libbpf looks up
 * where the running kernel has them (CO-RE), so no kernel header is needed, and one source serves every kernel.
 * Helper numbers are those of the bpf(2) interface, which never change.
 */

typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define OF_THE_KERNEL __attribute__((preserve_access_index))
#define SIZE_OF(type) __builtin_preserve_type_info(*(type *)0, 1)
#define OFFSET_OF(type, field) __builtin_preserve_field_info(((type *)0)->field, 0)

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*bpf_seq_write)(void *seq, const void *data, u32 size) = (void *)127;
static long (*bpf_loop)(u32 times, void *body, void *context, u64 flags) = (void *)181;

struct list_head {
	struct list_head *next;
} OF_THE_KERNEL;

struct anon_vma {
	struct anon_vma *root;
	struct anon_vma *parent;
	unsigned long num_children;
	unsigned long num_active_vmas;
} OF_THE_KERNEL;

struct anon_vma_chain {
	struct anon_vma *anon_vma;
	struct list_head same_vma;
} OF_THE_KERNEL;

struct xarray {
	void *xa_head;
} OF_THE_KERNEL;

struct address_space {
	struct xarray i_pages;
} OF_THE_KERNEL;

struct file {
	struct address_space *f_mapping;
} OF_THE_KERNEL;

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	unsigned long vm_pgoff;
	struct file *vm_file;
	struct anon_vma *anon_vma;
	struct list_head anon_vma_chain;
} OF_THE_KERNEL;

struct page {
	unsigned long compound_head;
} OF_THE_KERNEL;

struct folio {
	struct address_space *mapping;
	unsigned long index;
} OF_THE_KERNEL;

struct bpf_iter_meta {
	struct seq_file *seq;
} OF_THE_KERNEL;

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct vm_area_struct *vma;
} OF_THE_KERNEL;

/* What goes to and fro: one page-aligned array element, mapped by the reader, who has the same layout. */
#define FRAMES_MAX 4096

struct exchange {
	u64 low, high; /* bytes */
	u64 vmemmap; /* address of the struct page of frame 0 */
	u64 frames; /* how many are asked for */
	u64 pfn[FRAMES_MAX];
	u64 readable[FRAMES_MAX]; /* 0: the frame has no struct page */
	u64 mapping[FRAMES_MAX];
	u64 index[FRAMES_MAX]; /* of this very page, not of its folio's head */
};

struct {
	int (*type)[2]; /* BPF_MAP_TYPE_ARRAY */
	int (*map_flags)[1 << 10]; /* BPF_F_MMAPABLE */
	int (*max_entries)[1];
	u32 *key;
	struct exchange *value;
} exchange SECTION(".maps");

static struct exchange *the_exchange(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&exchange, &zero);
}

#define CHAIN_MAX 256
#define CHAIN_ENDS 0
#define CHAIN_GOES_ON 1 /* there is more than CHAIN_MAX */

/* A record is nine words, then the anon_vmas of the chain from its head, then one word that says how it ended. */
SECTION("iter/task_vma")
int vmas(struct bpf_iter__task_vma *context)
{
	struct seq_file *out = context->meta->seq;
	struct vm_area_struct *vma = context->vma;
	struct exchange *x = the_exchange();
	struct list_head *head, *link;
	struct anon_vma *anon_vma;
	u64 ending = CHAIN_GOES_ON;

	if (!vma || !x || vma->vm_end <= x->low || vma->vm_start >= x->high)
		return 0;
	anon_vma = vma->anon_vma;

	u64 record[9] = { vma->vm_start, vma->vm_end, vma->vm_pgoff, vma->vm_file != 0, (u64)anon_vma };

	if (anon_vma) {
		record[5] = (u64)anon_vma->root;
		record[6] = (u64)anon_vma->parent;
		record[7] = anon_vma->num_children;
		record[8] = anon_vma->num_active_vmas;
	}
	bpf_seq_write(out, record, sizeof(record));

	head = &vma->anon_vma_chain;
	link = head->next;
	for (int i = 0; i <= CHAIN_MAX; i++) {
		struct anon_vma_chain *avc = (void *)link - OFFSET_OF(struct anon_vma_chain, same_vma);
		u64 reached;

		if (link == head) {
			ending = CHAIN_ENDS;
			break;
		}
		if (bpf_probe_read_kernel(&reached, sizeof(reached), &avc->anon_vma) ||
		    bpf_probe_read_kernel(&link, sizeof(link), &link->next))
			break;
		bpf_seq_write(out, &reached, sizeof(reached));
	}
	bpf_seq_write(out, &ending, sizeof(ending));
	return 0;
}

/* Two words: the entry, which is the address of the folio where the cache holds one page alone; sizeof(struct page). */
SECTION("iter/task_vma")
int page_cache(struct bpf_iter__task_vma *context)
{
	struct vm_area_struct *vma = context->vma;
	struct exchange *x = the_exchange();

	if (!vma || !x || vma->vm_start != x->low || !vma->vm_file)
		return 0;

	u64 record[2] = { (u64)vma->vm_file->f_mapping->i_pages.xa_head, SIZE_OF(struct page) };

	bpf_seq_write(context->meta->seq, record, sizeof(record));
	return 0;
}

static long read_frame(u64 i, void *unused)
{
	struct exchange *x = the_exchange();
	u64 size = SIZE_OF(struct page);
	u64 page, head;
	struct folio *folio;

	if (!x || i >= FRAMES_MAX)
		return 1;
	x->readable[i] = 0;
	page = x->vmemmap + x->pfn[i] * size;
	if (bpf_probe_read_kernel(&head, sizeof(head), &((struct page *)page)->compound_head))
		return 0;
	head = head & 1 ? head - 1 : page; /* a tail page points to its head */
	folio = (struct folio *)head;
	if (bpf_probe_read_kernel(&x->mapping[i], sizeof(u64), &folio->mapping) ||
	    bpf_probe_read_kernel(&x->index[i], sizeof(u64), &folio->index))
		return 0;
	x->index[i] += (page - head) / size;
	x->readable[i] = 1;
	return 0;
}

SECTION("syscall")
int folios(void *context)
{
	struct exchange *x = the_exchange();

	if (x)
		bpf_loop(x->frames, read_frame, 0, 0);
	return 0;
}

/* The helpers that read kernel memory are for programs under the GPL, or a licence beside it. */
char license_of_program[] SECTION("license") = "Dual MIT/GPL";
