# bootsector: what a PC runs first.  The firmware loads 512 bytes at 0x7C00 and jumps there in 16-bit
# real mode.  Prints on the screen by the BIOS (INT 10h, AH=0Eh: teletype) and on COM1, then halts.

        .set COM1, 0x3F8
        .set LINE_STATUS, COM1 + 5

        .code16
        .text
        .globl start
start:
        ljmp    $0, $here               # some firmware arrives as 07C0:0000: make it 0000:7C00
here:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7C00, %sp            # the stack grows down, away from us
        cld
        mov     $text, %si
next:
        lodsb
        test    %al, %al
        jz      halt
        mov     $0x0E, %ah
        mov     $0x0007, %bx            # page 0, light grey
        int     $0x10

        mov     %al, %cl
        mov     $LINE_STATUS, %dx
wait:
        in      %dx, %al
        test    $0x20, %al
        jz      wait
        mov     $COM1, %dx
        mov     %cl, %al
        out     %al, %dx
        jmp     next
halt:
        cli
        hlt
        jmp     halt

text:   .asciz  "hello from the boot sector\r\n"

        .org    510
        .word   0xAA55                  # "bootable", says the firmware
