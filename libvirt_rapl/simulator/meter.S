# A guest of a few hundred bytes: every vCPU is busy for its share of each 100 ms, sleeps for the rest, then reads its own
# RAPL registers and prints "VCPU UNIT ENERGY" (each eight hexadecimal digits) on the debug port. It runs in real mode from
# a ROM at F000:0000, needs an x2APIC, and uses only an interrupt vector, a lock and the stacks in RAM, below 640 KiB.
# When the power button is pressed, as `virsh shutdown` and `virsh reboot` do, it powers off.
#
# Where there is an energy channel, a port of a virtio-serial device on the first PCI bus, the boot CPU prints each line
# that comes from it, after a `>`. It looks for the device for as long as it runs, and asks it for news ten times a
# second. The device is used as drivers older than virtio 1.0 do it, by I/O ports.
#
#   as --32 -o meter.o meter.S && ld -m elf_i386 -Ttext 0 --oformat binary -o meter.rom meter.o

        .set    MSR_APIC_BASE, 0x1b     # bit 8: this is the boot CPU; bits 10 and 11: x2APIC mode
        .set    MSR_RAPL_UNIT, 0x606
        .set    MSR_PACKAGE_ENERGY, 0x611
        .set    APIC_ID, 0x802          # the x2APIC's registers are MSRs
        .set    APIC_EOI, 0x80b
        .set    APIC_SPURIOUS, 0x80f
        .set    APIC_COMMAND, 0x830
        .set    APIC_TIMER, 0x832
        .set    APIC_TIMER_COUNT, 0x838
        .set    APIC_TIMER_DIVIDE, 0x83e
        .set    VECTOR, 0x20
        .set    DEBUG_PORT, 0x402
        .set    PCI_ADDRESS, 0xcf8
        .set    PCI_DATA, 0xcfc
        .set    POWER_MANAGER, 0x80000b00       # PCI device 1, function 3: the PIIX4's
        .set    POWER_PORT, 0xb000      # where we put its ports: status, enable (+2), control (+4)
        .set    POWER_BUTTON, 1 << 8
        .set    SLEEP, 1 << 13          # of type 0: off
        .set    PIC_MASKS, 0x21         # and 0xa1
        .set    PERIOD, 100 * 1000000   # ns; KVM's APIC timer counts nanoseconds
        .set    LOCK, 0x500             # one byte: a vCPU is printing
        .set    SLOT, 0x501             # one byte: the device on the PCI bus to look at next
        .set    FOUND, 0x502            # one byte: the virtio-serial device is in use
        .set    LINE_END, 0x504         # how much of a line is in LINE
        .set    STACKS, 0x1000          # 256 bytes for each vCPU

        .set    VIRTIO_SERIAL, 0x10031af4       # its PCI device and vendor
        .set    VIRTIO, 0xc000          # where we put its ports:
        .set    FEATURES, VIRTIO + 4    # those that we use
        .set    QUEUE_PAGE, VIRTIO + 8
        .set    QUEUE_SIZE, VIRTIO + 12
        .set    QUEUE_SELECT, VIRTIO + 14
        .set    QUEUE_NOTIFY, VIRTIO + 16
        .set    STATUS, VIRTIO + 18
        .set    MULTIPORT, 2            # the feature: ports have names
        .set    DEVICE_READY, 0         # what control messages say
        .set    PORT_ADD, 1
        .set    PORT_READY, 3
        .set    PORT_OPEN, 6
        .set    PORT_NAME, 7

        # Segments. A queue has 16 to 1024 places (QEMU has 32 and 128; since 10.0.13 always 1024), and that depends on
        # it: descriptors, of which we use the first; the available ring; and on a page of its own the used ring. What
        # we remember, and the buffers of control messages, are where no size has anything that is used.
        .set    CONTROL_IN, 0x1000      # queue 2
        .set    CONTROL_OUT, 0x1800     # queue 3
        .set    PORT_IN, 0x2000         # queue 2 n + 2 for port n
        .set    PORT_BUFFERS, 0x2800
        .set    LINE, 0x3000
        .set    AVAILABLE, 0xff0        # offset of the available ring
        .set    MASK, 0xff2             # size of the queue minus 1
        .set    SEEN, 0xff4             # how many used buffers we have seen
        .set    NUMBER, 0xff6           # of the queue
        .set    USED, 0xff8             # offset of the used ring
        .set    UNUSED, 0x1000          # what that is before the queue is set up
        .set    CONTROL_BUFFERS, 0x1800
        .set    CONTROL_BUFFER, 128     # bytes
        .set    PORT_BUFFER, 1024
        .set    BUFFERS, 16             # of each queue. Place n of a ring has buffer n modulo 16: they are used in order
        .set    TO_US, 2                # flag of a descriptor: the device writes

        .macro  pci_set address, value
        mov     $PCI_ADDRESS, %dx
        mov     $\address, %eax
        out     %eax, %dx
        mov     $PCI_DATA, %dx
        mov     $\value, %eax
        out     %eax, %dx
        .endm

        .code16
        .global _start
_start: jmp     start                   # the start-up IPI sends the other CPUs here, too
        .org    4
duties: .fill   16, 1, 100              # % busy, by vCPU: guest.py writes them here

start:  cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $MSR_APIC_BASE, %ecx
        rdmsr
        or      $0xc00, %ax
        wrmsr
        test    $0x100, %ax
        jz      everyone

        movb    $0, LOCK                # a reset may have come while it was held
        movb    $0, SLOT
        movb    $0, FOUND
        mov     $0xff, %al              # the power button must not interrupt: it is polled
        out     %al, $PIC_MASKS
        out     %al, $PIC_MASKS + 0x80
        pci_set POWER_MANAGER + 0x40, POWER_PORT + 1
        pci_set POWER_MANAGER + 0x80, 1
        mov     $POWER_PORT + 2, %dx
        mov     $POWER_BUTTON, %ax
        out     %ax, %dx

        movw    $timer, 4 * VECTOR      # the boot CPU sets the vector and wakes the others
        movw    %cs, 4 * VECTOR + 2
        mov     $APIC_COMMAND, %ecx
        xor     %edx, %edx
        mov     $0xc4500, %eax          # INIT to all but myself
        wrmsr
        mov     $0xc46f0, %eax          # start-up at page 0xf0, likewise
        wrmsr

everyone:
        mov     $APIC_ID, %ecx
        rdmsr
        mov     %eax, %edi              # %edi: my number, for good
        inc     %ax
        shl     $8, %ax
        add     $STACKS, %ax
        mov     %ax, %sp
        xor     %edx, %edx
        mov     $APIC_SPURIOUS, %ecx
        mov     $0x1ff, %eax            # switch the APIC on
        wrmsr
        mov     $APIC_TIMER, %ecx
        mov     $VECTOR, %eax           # one shot
        wrmsr
        mov     $APIC_TIMER_DIVIDE, %ecx
        mov     $0xb, %eax              # by one
        wrmsr
        movzbl  %cs:duties(%di), %eax
        imul    $PERIOD / 100, %eax, %ebx       # %ebx: my busy ns of each period, for good

period: mov     %ebx, %eax
        test    %eax, %eax
        jz      sleep
        call    arm
        sti
spin:   test    %bp, %bp
        jz      spin
        cli

sleep:  mov     $PERIOD, %eax
        sub     %ebx, %eax
        jz      report
        call    arm
nap:    sti                             # takes effect after hlt has begun, so no interrupt is missed between them
        hlt
        cli
        test    %bp, %bp
        jz      nap

report: mov     $1, %al                 # whole lines only, also when several vCPUs print
        xchg    %al, LOCK
        test    %al, %al
        jnz     report
        mov     %edi, %eax
        mov     $' ', %bp
        call    print
        mov     $MSR_RAPL_UNIT, %ecx
        rdmsr
        call    print
        mov     $MSR_PACKAGE_ENERGY, %ecx
        rdmsr
        mov     $'\n', %bp
        call    print
        movb    $0, LOCK
        test    %edi, %edi
        jnz     period
        call    channel                 # the boot CPU looks at the channel and the power button
        mov     $POWER_PORT, %dx
        in      %dx, %ax
        test    $POWER_BUTTON, %ax
        jz      period
        mov     $POWER_PORT + 4, %dx
        mov     $SLEEP, %ax
        out     %ax, %dx
        jmp     period

arm:    xor     %bp, %bp                # interrupt me in %eax ns: the handler sets %bp
        xor     %edx, %edx
        mov     $APIC_TIMER_COUNT, %ecx
        wrmsr
        ret

timer:  push    %eax
        push    %ecx
        push    %edx
        mov     $APIC_EOI, %ecx
        xor     %eax, %eax
        xor     %edx, %edx
        wrmsr
        pop     %edx
        pop     %ecx
        pop     %eax
        mov     $1, %bp
        iret

print:  mov     %eax, %esi              # %eax in hexadecimal, then the character in %bp
        mov     $DEBUG_PORT, %dx
        mov     $8, %cx
digit:  rol     $4, %esi
        mov     %si, %ax
        and     $15, %al
        add     $'0', %al
        cmp     $'9', %al
        jbe     put
        add     $'A' - '9' - 1, %al
put:    outb    %al, %dx
        loop    digit
        mov     %bp, %ax
        outb    %al, %dx
        ret

# The energy channel. All of this may change any register but %ebx and %edi.

channel:
        push    %ebx
        push    %edi
        cmpb    $0, FOUND
        jne     control
        call    find
        jmp     done

control:
        mov     $CONTROL_IN, %ax        # what the device says of its ports
        mov     %ax, %es
        call    next
        jz      data
        shl     $7, %bx                 # by CONTROL_BUFFER
        add     $CONTROL_BUFFERS, %bx
        mov     %es:(%bx), %ebp         # %ebp: number of the port
        mov     %es:4(%bx), %al
        cmp     $PORT_ADD, %al
        je      ready
        cmp     $PORT_NAME, %al
        je      named
again:  mov     $CONTROL_IN, %ax
        mov     %ax, %es
        mov     $1, %ax
        call    offer
        jmp     control

ready:  mov     $1 << 16 | PORT_READY, %ecx
        call    say
        jmp     again

named:  lea     8(%bx), %di
        mov     $name, %si
compare:
        mov     %cs:(%si), %al
        cmp     %es:(%di), %al
        jne     again
        inc     %si
        inc     %di
        test    %al, %al
        jnz     compare
        mov     $PORT_IN, %ax
        mov     %ax, %es
        lea     2(%bp), %bx
        add     %bp, %bx
        cmp     %bx, %es:NUMBER
        je      open                    # it was taken out, and is back: the device goes on with its queue
        mov     $PORT_BUFFERS << 4, %ecx
        mov     $PORT_BUFFER, %si
        call    set_up
        mov     $BUFFERS, %ax
        call    offer
open:   movw    $0, LINE_END
        mov     $1 << 16 | PORT_OPEN, %ecx
        call    say
        jmp     again

data:   mov     $PORT_IN, %ax           # what was written to the port
        mov     %ax, %es
        call    next
        jz      done
        push    %es
        shl     $6, %bx                 # by PORT_BUFFER, in a segment
        add     $PORT_BUFFERS, %bx
        mov     LINE_END, %di
        mov     $LINE, %ax
        mov     %ax, %es
        mov     %bx, %ds
        xor     %si, %si
        jcxz    moved
byte:   lodsb
        cmp     $'\n', %al
        je      line
        stosb
more:   loop    byte
moved:  xor     %ax, %ax
        mov     %ax, %ds
        mov     %di, LINE_END
        pop     %es
        mov     $1, %ax
        call    offer
        jmp     data

line:   push    %ds                     # print what is in LINE
        push    %cx
        push    %si
        xor     %ax, %ax
        mov     %ax, %ds
other:  mov     $1, %al
        xchg    %al, LOCK
        test    %al, %al
        jnz     other
        mov     $LINE, %ax
        mov     %ax, %ds
        mov     $DEBUG_PORT, %dx
        mov     $'>', %al
        outb    %al, %dx
        xor     %si, %si
        mov     %di, %cx
        rep outsb
        mov     $'\n', %al
        outb    %al, %dx
        xor     %di, %di
        mov     %di, %ds
        movb    $0, LOCK
        pop     %si
        pop     %cx
        pop     %ds
        jmp     more

done:   pop     %edi
        pop     %ebx
        ret

find:   movzbl  SLOT, %esi              # look at one PCI device, and prepare it if it is the one
        incb    SLOT
        andb    $31, SLOT
        shl     $11, %esi
        or      $0x80000000, %esi
        mov     %esi, %eax
        mov     $PCI_ADDRESS, %dx
        out     %eax, %dx
        mov     $PCI_DATA, %dx
        in      %dx, %eax
        cmp     $VIRTIO_SERIAL, %eax
        jne     found
        lea     0x10(%esi), %eax        # where its ports are
        mov     $VIRTIO + 1, %ecx
        call    configure
        lea     4(%esi), %eax
        mov     $5, %ecx                # it has I/O ports, and may write to memory
        call    configure
        mov     $STATUS, %dx
        mov     $0, %al                 # reset
        out     %al, %dx
        mov     $3, %al                 # we have seen it, and have a driver
        out     %al, %dx
        mov     $FEATURES, %dx
        mov     $MULTIPORT, %eax
        out     %eax, %dx
        mov     $CONTROL_IN, %ax
        mov     %ax, %es
        mov     $2, %bx
        mov     $(CONTROL_IN << 4) + CONTROL_BUFFERS, %ecx
        mov     $CONTROL_BUFFER, %si
        call    set_up
        mov     $CONTROL_OUT, %ax
        mov     %ax, %es
        mov     $3, %bx
        mov     $(CONTROL_OUT << 4) + CONTROL_BUFFERS, %ecx
        mov     $8, %si
        call    set_up
        mov     $PORT_IN, %ax           # nothing comes before it is set up
        mov     %ax, %es
        movw    $0, %es:NUMBER
        movw    $0, %es:SEEN
        movw    $UNUSED, %es:USED
        movw    $0, %es:UNUSED + 2
        mov     $STATUS, %dx
        mov     $7, %al                 # the driver is ready
        out     %al, %dx
        mov     $CONTROL_IN, %ax
        mov     %ax, %es
        mov     $BUFFERS, %ax
        call    offer
        xor     %ebp, %ebp
        mov     $1 << 16 | DEVICE_READY, %ecx
        call    say
        movb    $1, FOUND
found:  ret

configure:                              # write %ecx to register %eax of a PCI device
        mov     $PCI_ADDRESS, %dx
        out     %eax, %dx
        mov     $PCI_DATA, %dx
        mov     %ecx, %eax
        out     %eax, %dx
        ret

set_up:                                 # queue %bx at segment %es, with buffers of %si bytes from address %ecx on
        mov     $QUEUE_SELECT, %dx
        mov     %bx, %ax
        out     %ax, %dx
        mov     %es, %ax
        movzwl  %ax, %eax
        shr     $8, %eax
        mov     $QUEUE_PAGE, %dx
        out     %eax, %dx
        xor     %di, %di
        movzwl  %si, %eax
descriptor:
        mov     %ecx, %es:(%di)
        movl    $0, %es:4(%di)
        mov     %eax, %es:8(%di)
        movl    $TO_US, %es:12(%di)
        cmp     $3, %bx
        jne     1f
        movl    $0, %es:12(%di)         # the only one whose buffers the device reads
1:      add     %eax, %ecx
        add     $16, %di
        cmp     $16 * BUFFERS, %di
        jb      descriptor
        mov     $QUEUE_SIZE, %dx
        in      %dx, %ax
        mov     %ax, %cx
        dec     %ax
        mov     %ax, %es:MASK
        mov     %cx, %di
        shl     $4, %di
        mov     %di, %es:AVAILABLE
        lea     4 + 4095(%di), %si      # it has 4 bytes, and two for each place; then a page begins
        add     %cx, %si
        add     %cx, %si
        and     $0xf000, %si
        mov     %si, %es:USED
        mov     %bx, %es:NUMBER
        movw    $0, %es:SEEN
        movw    $0, %es:2(%si)
        movl    $1, %es:(%di)           # nothing yet, and no interrupts
        xor     %ax, %ax
place:  mov     %ax, %es:4(%di)
        inc     %ax
        and     $BUFFERS - 1, %ax
        add     $2, %di
        loop    place
        ret

offer:  mov     %es:AVAILABLE, %di      # offer the next %ax buffers of queue %es to the device
        add     %ax, %es:2(%di)
        mov     $QUEUE_NOTIFY, %dx
        mov     %es:NUMBER, %ax
        out     %ax, %dx
        ret

next:   mov     %es:SEEN, %ax           # ZF: no more used buffers in queue %es; else %bx: which, %cx: bytes in it
        mov     %es:USED, %di
        cmp     %es:2(%di), %ax
        je      none
        mov     %ax, %bx
        and     %es:MASK, %bx
        shl     $3, %bx
        mov     %es:8(%bx,%di), %cx
        mov     %ax, %bx
        and     $BUFFERS - 1, %bx
        incw    %es:SEEN
        or      $1, %al                 # ZF is off
none:   ret

say:    mov     $CONTROL_OUT, %ax       # send the control message %ecx of port %ebp, and wait until it was taken
        mov     %ax, %es
        mov     %es:SEEN, %bx
        and     $BUFFERS - 1, %bx
        shl     $3, %bx
        mov     %ebp, %es:CONTROL_BUFFERS(%bx)
        mov     %ecx, %es:CONTROL_BUFFERS + 4(%bx)
        mov     $1, %ax
        call    offer
taken:  call    next
        jz      taken
        ret

name:   .asciz  "org.virt-rapl.energy.0"
