# Loops over what an emulator must stop for.  Assembled with -DTURNS_x=N for each loop x of costs.py.
#
# Entered by multiboot in protected mode; goes to long mode with the low 4 GiB mapped one to one by
# 2 MiB pages, for the user too.  Each loop is announced by a letter on COM1, in the order of `loops`, and
# ends with a full stop.  In a loop %rbx counts down and %r8 is the local APIC.

        .set COM1, 0x3F8
        .set LAPIC, 0xFEE00000
        .set IOAPIC, 0xFEC00000
        .set LAPIC_TPR, 0x80
        .set LAPIC_EOI, 0xB0
        .set LAPIC_SVR, 0xF0
        .set LAPIC_ICR, 0x300
        .set VECTOR, 0x40
        .set SELF_IPI, 0x44000 | VECTOR         # fixed, asserted, shorthand "self" (SDM vol. 3, 11.6.1)
        .set IOAPIC_WINDOW, 0x10
        .set NOT_MAPPED, 0x100000000
        .set IA32_EFER, 0xC0000080
        .set IA32_STAR, 0xC0000081
        .set IA32_LSTAR, 0xC0000082
        .set IA32_FMASK, 0xC0000084
        .set IA32_KERNEL_GS_BASE, 0xC0000102
        .set CODE, 0x08
        .set DATA, 0x10                          # user data and user code follow, as SYSRET wants them
        .set EFER_LME_SCE, 0x101

        .section .multiboot, "a"
        .long 0x1BADB002, 0, -0x1BADB002

        .text
        .code32
        .globl start
start:
        mov     $stack_top, %esp
        mov     $directory, %edi                 # four directories, 2048 large pages, present, writable, user
        mov     $0x87, %eax
        xor     %edx, %edx
1:      mov     %eax, (%edi)
        mov     %edx, 4(%edi)
        add     $8, %edi
        add     $0x200000, %eax
        jnc     1b
        movl    $directory + 0x0007, pointers
        movl    $directory + 0x1007, pointers + 8
        movl    $directory + 0x2007, pointers + 16
        movl    $directory + 0x3007, pointers + 24
        movl    $pointers + 7, top
        mov     $0x620, %eax                     # PAE, OSFXSR, OSXMMEXCPT
        mov     %eax, %cr4
        mov     $top, %eax
        mov     %eax, %cr3
        mov     $IA32_EFER, %ecx
        mov     $EFER_LME_SCE, %eax
        xor     %edx, %edx
        wrmsr
        mov     $0x80000011, %eax
        mov     %eax, %cr0
        lgdt    gdt_pointer
        ljmp    $CODE, $long_mode

        .code64
long_mode:
        mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $LAPIC, %r8d
        movl    $0x1FF, LAPIC_SVR(%r8)
        mov     $0xFF, %al                       # both 8259As silent
        out     %al, $0x21
        out     %al, $0xA1
        mov     $idt, %edi
        mov     $gates, %esi                     # pairs: vector, handler
gate:   mov     (%rsi), %eax
        mov     4(%rsi), %edx
        shl     $4, %eax
        movl    $CODE << 16, %ecx
        mov     %dx, %cx
        mov     %ecx, (%rdi, %rax)
        mov     %edx, %ecx
        and     $0xFFFF0000, %ecx
        or      $0x8E00, %ecx                    # present, ring 0, interrupt gate
        mov     %ecx, 4(%rdi, %rax)
        add     $8, %rsi
        cmp     $gates_end, %esi
        jb      gate
        mov     $idt_pointer, %edi
        lidt    (%rdi)
        mov     $IA32_STAR, %ecx
        xor     %eax, %eax
        mov     $(DATA | 3) << 16 | CODE, %edx
        wrmsr
        mov     $IA32_LSTAR, %ecx
        mov     $on_syscall, %eax
        xor     %edx, %edx
        wrmsr
        mov     $IA32_FMASK, %ecx
        xor     %eax, %eax
        wrmsr
        mov     $loops, %r12d
        mov     $'a', %r13d
next:   mov     %r13d, %eax
        mov     $COM1, %edx
        out     %al, %dx
        mov     (%r12), %eax
        mov     4(%r12), %ebx
        jmp     *%rax
finished:
        mov     $'.', %al
        mov     $COM1, %edx
        out     %al, %dx
        inc     %r13d
        add     $8, %r12
        cmp     $loops_end, %r12d
        jb      next
        cli
        hlt

        .macro again
        dec     %rbx
        jnz     1b
        jmp     finished
        .endm

block:
1:      again
load:   mov     $scratch, %edi
1:      mov     (%rdi), %rax
        mov     %rax, 8(%rdi)
        again
call:
1:      call    2f
        again
2:      ret
indirect:
        mov     $2f, %eax
1:      jmp     *%rax
2:      again
rdtsc:
1:      rdtsc
        again
cpuid:  mov     %rbx, %r14
1:      xor     %eax, %eax
        cpuid
        dec     %r14
        jnz     1b
        jmp     finished
rdmsr:  mov     $IA32_KERNEL_GS_BASE, %ecx
1:      rdmsr
        again
wrmsr:  mov     $IA32_KERNEL_GS_BASE, %ecx
        xor     %eax, %eax
        xor     %edx, %edx
1:      wrmsr
        again
int:
1:      int     $0x80
        again
ud:
1:      ud2
        again
pf:     mov     $NOT_MAPPED, %rdi
1:      movb    (%rdi), %al
        again
syscall:
        mov     $2f, %ecx
        mov     $2, %r11d
        sysretq
2:      syscall                                  # on_syscall counts
        jmp     2b
ipi:    xor     %r10, %r10
        xor     %r11, %r11
        sti
1:      movl    $SELF_IPI, LAPIC_ICR(%r8)
2:      cmp     %r10, %r11                       # on_ipi counts
        je      2b
        mov     %r10, %r11
        dec     %rbx
        jnz     1b
        cli
        jmp     finished
invlpg: mov     $scratch, %edi
1:      invlpg  (%rdi)
        mov     (%rdi), %rax
        again
cr3:    mov     %cr3, %rcx
        mov     $scratch, %edi
1:      mov     %rcx, %cr3
        mov     (%rdi), %rax
        again
in_lsr: mov     $COM1 + 5, %edx
1:      in      %dx, %al
        again
in_imr:
1:      in      $0x21, %al
        again
in_pit:
1:      in      $0x40, %al
        again
out_imr:
        mov     $0xFF, %al
1:      out     %al, $0x21
        again
out_post:
1:      out     %al, $0x80
        again
lapic_read:
1:      mov     0x20(%r8), %eax
        again
lapic_write:
        xor     %eax, %eax
1:      mov     %eax, LAPIC_TPR(%r8)
        again
ioapic_read:
        mov     $IOAPIC, %edi
1:      mov     IOAPIC_WINDOW(%rdi), %eax
        again

on_int: iretq
on_ud:  addq    $2, (%rsp)
        iretq
on_pf:  add     $8, %rsp                         # the error code
        addq    $2, (%rsp)                       # the length of the load
        iretq
on_ipi: inc     %r10
        movl    $0, LAPIC_EOI(%r8)
        iretq
on_syscall:
        dec     %rbx
        jz      finished
        sysretq

        .data
        .balign 8
gdt:    .quad   0
        .quad   0x00AF9B000000FFFF               # code, 64 bits
        .quad   0x00CF93000000FFFF               # data
        .quad   0x00CFF3000000FFFF               # user data
        .quad   0x00AFFB000000FFFF               # user code, 64 bits
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt, 0
idt_pointer:
        .word   256 * 16 - 1
        .long   idt, 0
gates:  .long   6, on_ud, 14, on_pf, VECTOR, on_ipi, 0x80, on_int
gates_end:
loops:
        .long   block, TURNS_block
        .long   load, TURNS_load
        .long   call, TURNS_call
        .long   indirect, TURNS_indirect
        .long   rdtsc, TURNS_rdtsc
        .long   cpuid, TURNS_cpuid
        .long   rdmsr, TURNS_rdmsr
        .long   wrmsr, TURNS_wrmsr
        .long   int, TURNS_int
        .long   ud, TURNS_ud
        .long   pf, TURNS_pf
        .long   syscall, TURNS_syscall
        .long   ipi, TURNS_ipi
        .long   invlpg, TURNS_invlpg
        .long   cr3, TURNS_cr3
        .long   in_lsr, TURNS_in_lsr
        .long   in_imr, TURNS_in_imr
        .long   in_pit, TURNS_in_pit
        .long   out_imr, TURNS_out_imr
        .long   out_post, TURNS_out_post
        .long   lapic_read, TURNS_lapic_read
        .long   lapic_write, TURNS_lapic_write
        .long   ioapic_read, TURNS_ioapic_read
loops_end:

        .bss
        .balign 4096
top:    .skip   4096
pointers:
        .skip   4096
directory:
        .skip   4 * 4096
idt:    .skip   256 * 16
scratch:
        .skip   4096
stack:  .skip   16384
stack_top:

        .section .note.GNU-stack, "", @progbits
