"""The dashboards in etc/grafana, made from the declared metrics. docs/generate.py writes them.

Power is the rate of an energy counter, never the gauge of the last interval: so the kWh of a panel are the integral of
the watts that another one shows.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from libvirt_rapl.daemon import exposition as metrics
from libvirt_rapl.daemon.exposition import Declared

DIRECTORY = Path(__file__).resolve().parent.parent / "etc/grafana"
DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "virt-rapl"
WATT, KWH, SHARE, COUNT, SECONDS = "watt", "kwatth", "percentunit", "short", "s"
DEGRADED = 'state="degraded"'
ALL_INSTANCES, INSTANCE, UUID = 'instance=~"$instance"', 'instance="$instance"', 'uuid="$uuid"'
OF_DOMAINS, OF_HOSTS = 'zone="package"', 'zone=~"package.*"'
"""Packages: a domain's counters have the kind of a zone, a host's its name."""


def series(metric: Declared, *matchers: str) -> str:
    """Return a selector of the metric's series. Raises ValueError for a label that it does not have."""
    for matcher in matchers:
        label = matcher.partition("=")[0]
        if label not in (*metric.labels, "instance"):
            raise ValueError(f"{metric.name} has no label {label}")
    return f"{metric.name}{{{','.join(matchers)}}}"


@dataclass(frozen=True)
class Energy:
    """Counters of energy that are added up by labels, as power and as the kWh of the time that is shown."""

    metric: Declared
    matchers: tuple[str, ...]
    by: str = ""

    def watts(self) -> str:
        """Return the power at each time."""
        return self._sum("rate", "$__rate_interval")

    def kwh(self) -> str:
        """Return the energy of all the time that is shown."""
        return f"{self._sum('increase', '$__range')} / 3.6e6"

    def _sum(self, operation: str, window: str) -> str:
        assert self.metric.unit == "joules"
        by = f" by ({self.by}) " if self.by else ""
        return f"sum{by}({operation}({series(self.metric, *self.matchers)}[{window}]))"


def by_project(instances: str) -> tuple[str, str]:
    """Return the power of domains by project, and their kWh: joined host by host, as the recording rules do it."""
    energy = series(metrics.DOMAIN_ENERGY, OF_DOMAINS, instances)
    info = series(metrics.DOMAIN_INFO, instances)
    seen = f"{info} * time() or max_over_time(({info} * time())[$__range:1m])"
    newest = f"topk by (instance, uuid) (1, {seen})"

    def joined(energies: str, infos: str) -> str:
        project = f"group by (instance, uuid, project) ({infos})"
        total = f"sum by (project) ({energies} * on (instance, uuid) group_left (project) {project})"
        return f'label_replace({total}, "project", "none", "project", "")'

    return joined(f"rate({energy}[$__rate_interval])", info), joined(
        f"increase({energy}[$__range])", newest
    ) + " / 3.6e6"


def shown_as_day(record: str, *matchers: str) -> str:
    """Return a selector of what etc/prometheus/virt-rapl.rules.yml records as kWh of a day."""
    return f"{record}:increase1d{{{','.join((*matchers, OF_DOMAINS))}}}"


def query(expr: str, legend: str = "") -> prometheus.Dataquery:
    """Return a query for the values of each series over time."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id("A").range()


def now(expr: str, legend: str = "") -> prometheus.Dataquery:
    """Return a query for one value of each series, at the end of the time that is shown."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id("A").instant()


def banner(simulated: str) -> stat.Panel:
    """Return a line that is red where any of the energy is simulated."""
    texts = {
        "1": ValueMappingResult(text="SIMULATED: this energy is not the machines' own", color="red"),
        "0": ValueMappingResult(text="Measured energy", color="transparent"),
    }
    panel = figure("", f"max({simulated})", COUNT, height=2, width=24).no_value("No data from virt-rapl")
    return panel.mappings([ValueMap(options=texts)]).color_mode(BigValueColorMode.BACKGROUND_SOLID)


def was_simulated(*matchers: str) -> str:
    """Return which hosts' energy was simulated at any of the time that is shown."""
    return f"max_over_time({series(metrics.SIMULATED, *matchers)}[$__range])"


def figure(title: str, expr: str, unit: str, *, height: int = 4, width: int = 4, red_from: float = 0) -> stat.Panel:
    """Return one figure; `red_from`: the value from which it is red, if any."""
    panel = stat.Panel().title(title).datasource(DATA_SOURCE).height(height).span(width).unit(unit)
    steps = [Threshold(value=None, color="text")] + ([Threshold(value=red_from, color="red")] if red_from else [])
    panel.thresholds(build.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    panel.graph_mode(BigValueGraphMode.NONE).reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.with_target(now(expr))


def names(title: str, expr: str, legend: str) -> stat.Panel:
    """Return the names of series instead of a figure."""
    panel = stat.Panel().title(title).datasource(DATA_SOURCE).height(4).span(4).text_mode(BigValueTextMode.NAME)
    panel.color_mode(BigValueColorMode.NONE).graph_mode(BigValueGraphMode.NONE)
    return panel.with_target(now(expr, legend))


def graph(
    title: str, unit: str, *queries: prometheus.Dataquery, width: int = 12, stacked: bool = True
) -> timeseries.Panel:
    """Return lines, or areas on top of each other."""
    panel = timeseries.Panel().title(title).datasource(DATA_SOURCE).height(9).span(width).unit(unit).min(0)
    panel.show_points(VisibilityMode.NEVER).fill_opacity(30 if stacked else 0)
    panel.stacking(StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE).group("A"))
    legend = VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    panel.legend(legend.display_mode(LegendDisplayMode.LIST))
    return panel.targets([each.ref_id(chr(ord("A") + n)) for n, each in enumerate(queries)])


def days(title: str, *queries: prometheus.Dataquery, width: int = 12) -> timeseries.Panel:
    """Return bars of kWh, one a day."""
    panel = graph(title, KWH, *queries, width=width).interval("1d").draw_style(GraphDrawStyle.BARS).fill_opacity(80)
    return panel.description("A bar is the day (UTC) that ends where it stands. From the recording rules.").time_from(
        "30d"
    )


def rows(title: str, columns: dict[str, tuple[str, str]], *, width: int = 12) -> table.Panel:
    """Return a table of series; `columns`: the unit of each figure, and what it is."""
    panel = table.Panel().title(title).datasource(DATA_SOURCE).height(9).span(width)
    renamed = {}
    for n, (name, (unit, expr)) in enumerate(columns.items()):
        ref = chr(ord("A") + n)
        panel.with_target(now(expr).format(PromQueryFormat.TABLE).ref_id(ref))
        panel.override_by_name(name, [DynamicConfigValue("unit", unit)])
        renamed[f"Value #{ref}" if len(columns) > 1 else "Value"] = name
    panel.with_transformation(DataTransformerConfig("merge", options={}))
    organize = {"excludeByName": {"Time": True, "uuid": True}, "renameByName": renamed}
    return panel.with_transformation(DataTransformerConfig("organize", options=organize))


def variable(name: str, metric: Declared, *matchers: str) -> build.QueryVariable:
    """Return a variable with the values of a label, which has the variable's name."""
    of = metric.name if not matchers else f"{metric.name}{{{','.join(matchers)}}}"
    made = build.QueryVariable(name).label(name).datasource(DATA_SOURCE).query(f"label_values({of}, {name})")
    return made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)


def any_of(made: build.QueryVariable) -> build.QueryVariable:
    """Let several values of a variable be chosen, or all."""
    return made.multi(True).include_all(True).all_value(".*")


def dashboard(name: str, *variables: build.QueryVariable) -> build.Dashboard:
    """Return one without panels, linked to the others."""
    made = (
        build.Dashboard(f"virt-rapl: {name}").uid(f"virt-rapl-{name}").tags([TAG]).refresh("1m").time("now-6h", "now")
    )
    link = build.DashboardLink("virt-rapl").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    made.link(link.as_dropdown(True).include_vars(True).keep_time(True))
    made.with_variable(build.DatasourceVariable("datasource").label("data source").type("prometheus"))
    for each in variables:
        made.with_variable(each)
    return made


def fleet() -> build.Dashboard:
    """Return what all hosts, or some, use and what for."""
    hosts = Energy(metrics.ZONE_ENERGY, (OF_HOSTS, ALL_INSTANCES))
    domains = Energy(metrics.DOMAIN_ENERGY, (OF_DOMAINS, ALL_INSTANCES))
    rest = Energy(metrics.UNATTRIBUTED_ENERGY, (OF_HOSTS, ALL_INSTANCES), "kind")
    each_host = Energy(metrics.ZONE_ENERGY, (OF_HOSTS, ALL_INSTANCES), "instance")
    each_domain = Energy(metrics.DOMAIN_ENERGY, (OF_DOMAINS, ALL_INSTANCES), "domain, uuid")
    project_watts, project_kwh = by_project(ALL_INSTANCES)
    running = f"count(count by (uuid) ({series(metrics.DOMAIN_POWER, ALL_INSTANCES)}))"
    degraded = f"count({series(metrics.DOMAIN_METER_STATE, DEGRADED, ALL_INSTANCES)} == 1) or vector(0)"
    lost = f"sum by (instance) (increase({series(metrics.LOST_INTERVALS, ALL_INSTANCES)}[$__range]))"
    made = dashboard("fleet", any_of(variable("instance", metrics.UP)))
    made.with_panel(banner(was_simulated(ALL_INSTANCES)))
    made.with_panel(figure("Power of the hosts", hosts.watts(), WATT))
    made.with_panel(figure("Energy of the hosts", hosts.kwh(), KWH))
    made.with_panel(figure("Energy of the domains", domains.kwh(), KWH))
    made.with_panel(figure("Share of the domains", f"{domains.kwh()} / ({hosts.kwh()})", SHARE))
    made.with_panel(figure("Running domains", running, COUNT))
    made.with_panel(figure("Degraded meters", degraded, COUNT, red_from=1))
    made.with_panel(graph("Power, by use", WATT, query(domains.watts(), "domains"), query(rest.watts(), "{{kind}}")))
    made.with_panel(graph("Power of the domains, by project", WATT, query(project_watts, "{{project}}")))
    made.with_panel(rows("Energy, by project", {"energy": (KWH, project_kwh)}, width=8))
    made.with_panel(
        rows(
            "Domains that used most",
            {"energy": (KWH, f"topk(10, {each_domain.kwh()})"), "power": (WATT, f"topk(10, {each_domain.watts()})")},
            width=8,
        )
    )
    made.with_panel(
        rows(
            "Hosts",
            {
                "virt-rapld answers": (COUNT, series(metrics.UP, ALL_INSTANCES)),
                "power": (WATT, each_host.watts()),
                "energy": (KWH, each_host.kwh()),
                "lost intervals": (COUNT, lost),
            },
            width=8,
        )
    )
    top = "domain_uuid:virt_rapl_domain_energy_joules:topk10_rate5m"
    made.with_panel(graph("Ten domains of all hosts that use most", WATT, query(top, "{{domain}}"), stacked=False))
    project_days = shown_as_day("project_zone:virt_rapl_domain_energy_kwh")
    return made.with_panel(days("kWh a day of all hosts' domains, by project", query(project_days, "{{project}}")))


def host() -> build.Dashboard:
    """Return what one host uses, what for, and how well it is measured."""
    total = Energy(metrics.ZONE_ENERGY, (OF_HOSTS, INSTANCE))
    zones = Energy(metrics.ZONE_ENERGY, (INSTANCE,), "zone")
    domains = Energy(metrics.DOMAIN_ENERGY, (OF_DOMAINS, INSTANCE), "domain, uuid")
    rest = Energy(metrics.UNATTRIBUTED_ENERGY, (OF_HOSTS, INSTANCE), "kind")
    idle = Energy(metrics.UNATTRIBUTED_ENERGY, (OF_HOSTS, 'kind="idle"', INSTANCE))
    age = f"time() - {series(metrics.LAST_SAMPLE, INSTANCE)}"
    lost = f"sum(increase({series(metrics.LOST_INTERVALS, INSTANCE)}[$__range]))"
    states = f"{series(metrics.DOMAIN_METER_STATE, INSTANCE)} == 1"
    late = f"increase({series(metrics.SAMPLE_OVERRUNS, INSTANCE)}[$__rate_interval])"
    made = dashboard("host", variable("instance", metrics.UP))
    made.with_panel(banner(was_simulated(INSTANCE)))
    made.with_panel(figure("Power", total.watts(), WATT))
    made.with_panel(figure("Energy", total.kwh(), KWH))
    made.with_panel(figure("Idle", f"{idle.kwh()} / ({total.kwh()})", SHARE))
    made.with_panel(figure("Running domains", f"count({series(metrics.DOMAIN_POWER, INSTANCE)})", COUNT))
    made.with_panel(figure("Lost intervals", lost, COUNT, red_from=1))
    made.with_panel(figure("Age of the last sample", age, SECONDS, red_from=60))
    made.with_panel(graph("Power, by use", WATT, query(domains.watts(), "{{domain}}"), query(rest.watts(), "{{kind}}")))
    made.with_panel(
        graph("Power, by zone (one contains another)", WATT, query(zones.watts(), "{{zone}}"), stacked=False)
    )
    made.with_panel(rows("Energy of domains", {"energy": (KWH, domains.kwh())}, width=8))
    made.with_panel(rows("Energy of no domain", {"energy": (KWH, rest.kwh())}, width=4))
    made.with_panel(
        days(
            "kWh a day",
            query(f"sum({shown_as_day('instance_domain_uuid_zone:virt_rapl_domain_energy_kwh', INSTANCE)})", "domains"),
            query(shown_as_day("instance_kind_zone:virt_rapl_unattributed_energy_kwh", INSTANCE), "{{kind}}"),
        )
    )
    made.with_panel(rows("Meters of the guests", {"now": (COUNT, f"max by (domain, uuid, state) ({states})")}, width=8))
    made.with_panel(
        graph(
            "Sampling",
            SECONDS,
            query(series(metrics.SAMPLE_DURATION, INSTANCE), "duration of a sample"),
            width=8,
            stacked=False,
        )
    )
    return made.with_panel(
        graph("Late samples", COUNT, query(late, "began more than an interval late"), width=8, stacked=False)
    )


def domain() -> build.Dashboard:
    """Return what one domain uses, on whatever hosts it has been."""
    by_host = Energy(metrics.DOMAIN_ENERGY, (OF_DOMAINS, UUID), "instance")
    total = Energy(metrics.DOMAIN_ENERGY, (OF_DOMAINS, UUID))
    zones = Energy(metrics.DOMAIN_ENERGY, (UUID,), "zone")
    vcpus = Energy(metrics.VCPU_ENERGY, (UUID,), "vcpu")
    state = f"max by (state) ({series(metrics.DOMAIN_METER_STATE, UUID)})"
    there = series(metrics.DOMAIN_POWER, UUID)
    title = f"group by (title) ({series(metrics.DOMAIN_INFO, UUID)})"
    made = dashboard(
        "domain",
        any_of(variable("project", metrics.DOMAIN_INFO)),
        variable("domain", metrics.DOMAIN_INFO, 'project=~"$project"'),
        variable("uuid", metrics.DOMAIN_INFO, 'domain="$domain"'),
    )
    made.with_panel(banner(f"{was_simulated()} and on (instance) {by_host.kwh()}"))
    made.with_panel(figure("Power", total.watts(), WATT))
    made.with_panel(figure("Energy", total.kwh(), KWH))
    made.with_panel(names("Runs on", there, "{{instance}}"))
    made.with_panel(names("Title", title, "{{title}}"))
    made.with_panel(names("Meter of the guest", f"{state} == 1", "{{state}}"))
    made.with_panel(figure("Hosts it was on", f"count({by_host.kwh()} > 0)", COUNT))
    made.with_panel(graph("Power, by host", WATT, query(by_host.watts(), "{{instance}}")))
    made.with_panel(
        graph("Power, by zone (one contains another)", WATT, query(zones.watts(), "{{zone}}"), stacked=False)
    )
    vcpu = graph("Power, by vCPU", WATT, query(vcpus.watts(), "vCPU {{vcpu}}"), width=8)
    made.with_panel(vcpu.description("Only where the exporter runs with --vcpus."))
    made.with_panel(rows("Energy, by host", {"energy": (KWH, by_host.kwh())}, width=8))
    made.with_panel(
        days(
            "kWh a day",
            query(shown_as_day("domain_uuid_zone:virt_rapl_domain_energy_kwh", UUID), "{{domain}}"),
            width=8,
        )
    )
    timeline = statetimeline.Panel().title("Meter of the guest").datasource(DATA_SOURCE).height(6).span(24)
    texts = {"1": ValueMappingResult(text="yes", color="blue"), "0": ValueMappingResult(text="no", color="transparent")}
    timeline.mappings([ValueMap(options=texts)])
    return made.with_panel(timeline.with_target(query(state, "{{state}}")))


def made() -> dict[Path, str]:
    """Return the files as they should be."""
    return {
        DIRECTORY / f"virt-rapl-{each.__name__}.json": json.dumps(each().build(), cls=JSONEncoder, indent=2) + "\n"
        for each in (fleet, host, domain)
    }
