# The way into the C guests: a multiboot header (version 0.6.96, section 3), a stack, interrupts.
#
# The descriptor table has one gate for each of the 16 lines of the two 8259s, vectors 32 to 47, and
# all of them lead to the C function `interrupt(line)`.

        .set MAGIC, 0x1BADB002
        .set FLAGS, 0
        .set CODE, 0x08                 # selectors in our own descriptor table
        .set DATA, 0x10

        .section .multiboot, "a"
        .long MAGIC, FLAGS, -(MAGIC + FLAGS)

        .text
        .globl start
start:
        mov     $stack_top, %esp
        push    %ebx                    # the information structure, for main(info)
        lgdt    gdt_pointer             # multiboot leaves a table of its own that may be anywhere
        ljmp    $CODE, $reload
reload:
        mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        call    make_gates
        lidt    idt_pointer
        call    main
halt:
        cli
        hlt
        jmp     halt

# Gate n: offset of stub n, the code selector, 0x8E00 (present, ring 0, 32-bit interrupt gate).
make_gates:
        mov     $idt + 32 * 8, %edi
        mov     $stubs, %eax
        mov     $16, %ecx
gate:
        mov     %ax, (%edi)
        movw    $CODE, 2(%edi)
        movw    $0x8E00, 4(%edi)
        mov     %eax, %edx
        shr     $16, %edx
        mov     %dx, 6(%edi)
        add     $8, %edi
        add     $STUB_BYTES, %eax
        loop    gate
        ret

        .set STUB_BYTES, 8
        .balign 8
stubs:
        .set line, 0
        .rept 16
        push    $line
        jmp     common
        .balign STUB_BYTES
        .set line, line + 1
        .endr

common:
        pushal
        cld
        push    32(%esp)                # the line number, above the eight registers
        call    interrupt
        add     $4, %esp
        popal
        add     $4, %esp
        iret

        .section .rodata
        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      # code: base 0, limit 4 GiB, accessed already set
        .quad   0x00CF93000000FFFF      # data: the same
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
idt_pointer:
        .word   48 * 8 - 1
        .long   idt

        .bss
        .balign 16
idt:    .skip   48 * 8
stack:  .skip   16384
stack_top:

        .section .note.GNU-stack, "", @progbits
