# A guest of a few hundred bytes: every vCPU is busy for its share of each 100 ms, sleeps for the rest, then reads its own
# RAPL registers and prints "VCPU UNIT ENERGY" (each eight hexadecimal digits) on the debug port. It runs in real mode from
# a ROM at F000:0000, needs an x2APIC, and uses only an interrupt vector, a lock and the stacks in RAM, below 640 KiB.
# When the power button is pressed, as `virsh shutdown` and `virsh reboot` do, it powers off.
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
        .set    STACKS, 0x1000          # 256 bytes for each vCPU

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
        mov     $POWER_PORT, %dx        # the boot CPU looks at the power button
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
