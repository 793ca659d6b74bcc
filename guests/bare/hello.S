# hello: the smallest guest.  Multiboot (version 0.6.96, section 3) loads it and jumps to `start` in
# 32-bit protected mode, paging and interrupts off.  It says one line on COM1 and leaves.
#
# AT&T syntax: instruction source, destination.

        .set MAGIC, 0x1BADB002          # "here is a multiboot header"
        .set FLAGS, 0                   # nothing special wanted
        .set COM1, 0x3F8                # transmit holding register
        .set LINE_STATUS, COM1 + 5      # bit 5: the holding register is empty
        .set DEBUG_EXIT, 0xF4           # a value written here ends the machine

        .section .multiboot, "a"
        .long MAGIC, FLAGS, -(MAGIC + FLAGS)

        .text
        .globl start
start:
        mov     $text, %esi
next:
        mov     $LINE_STATUS, %dx
wait:
        in      %dx, %al
        test    $0x20, %al
        jz      wait

        lodsb                           # AL = the next character
        test    %al, %al
        jz      done
        mov     $COM1, %dx
        out     %al, %dx
        jmp     next
done:
        xor     %eax, %eax
        out     %eax, $DEBUG_EXIT       # status 0: all is well
halt:
        cli                             # where nothing listens on that port: stop for good
        hlt
        jmp     halt

        .section .rodata
text:   .asciz  "hello, world\r\n"
