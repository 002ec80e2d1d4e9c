"""Stands in for the table of metrics until that is there."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from libvirt_rapl.daemon.document import Document


def families(document: Document | None, *, vcpus: bool) -> Iterable[Metric]:
    """Return the metrics of a document, or of virt-rapld's absence."""
    yield GaugeMetricFamily("virt_rapl_up", "Whether virt-rapld answers.", float(document is not None))
    if document is None:
        return
    energy = CounterMetricFamily(
        "virt_rapl_domain_energy_joules", "Energy of a domain by kind of zone.", labels=["domain", "uuid", "zone"]
    )
    of_vcpus = CounterMetricFamily(
        "virt_rapl_vcpu_energy_joules", "Energy of a vCPU.", labels=["domain", "uuid", "vcpu"]
    )
    for domain in document.domains:
        for kind, reading in domain.zones.items():
            energy.add_metric([domain.name, domain.uuid, kind], reading.energy_joules)
        for vcpu in domain.vcpus:
            of_vcpus.add_metric([domain.name, domain.uuid, str(vcpu.id)], vcpu.energy_joules)
    yield energy
    if vcpus:
        yield of_vcpus
