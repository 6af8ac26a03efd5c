// Where a result comes from: model, options, notes, failed fields, and other values of the result.

import { query, type CaseDetail } from "./api";
import { profileText } from "./display";
import { word } from "./format";

export function DetailsPanel({ detail, onGo }: { detail: CaseDetail; onGo: (box: number[]) => void }) {
  const { calibration, ...provenance } = detail.provenance as { calibration: Record<string, unknown> | null } & Record<string, unknown>;
  return (
    <>
      {detail.notes.length > 0 && (
        <section><h2>Notes</h2><ul class="notes">{detail.notes.map((note) => <li key={note}>{note}</li>)}</ul></section>
      )}
      {detail.failed_count > 0 && (
        <section>
          <h2>Failed fields: {detail.failed_count.toLocaleString("en")}</h2>
          <ul class="notes">
            {detail.failed_fields.slice(0, 100).map((field, index) => (
              <li key={index}><button class="link" onClick={() => onGo(field.l0_box)}>{field.l0_box.slice(0, 2).join(", ")}</button> {field.cause}</li>
            ))}
          </ul>
        </section>
      )}
      <section>
        <h2>Maps</h2>
        {detail.maps.map((map) => (
          <dl class="values" key={map.name}>
            <dt>{word(map.name)}</dt>
            <dd>{map.um_stride ? `${map.um_stride[0].toPrecision(3)} µm per cell` : `${map.l0_stride[0]} px per cell`}</dd>
            {Object.entries(map.cells).map(([state, count]) => [<dt>{state}</dt>, <dd>{count.toLocaleString("en")} cells</dd>])}
          </dl>
        ))}
        {detail.maps.length === 0 && <p class="subtle">None.</p>}
      </section>
      {Object.keys(detail.details).length > 0 && <section><h2>Result</h2><Values values={detail.details} /></section>}
      <section>
        <h2>Calibration of the model</h2>
        {calibration === null && <p class="subtle">The result does not contain it. To see it, start the viewer with <code>--bundle BUNDLE</code>.</p>}
        {calibration && (Object.keys(calibration).length ? <Values values={calibration} /> : <p class="subtle">The model is not calibrated.</p>)}
      </section>
      <section><h2>Provenance</h2><Values values={provenance} /></section>
      {Object.entries(detail.images).map(([name, image]) => (
        <section key={name}>
          <h2>{name === "slide" ? "Image" : name}</h2>
          <Values values={{
            size: `${image.width} × ${image.height} px`,
            resolution: image.mpp ? `${image.mpp[0].toPrecision(4)} µm/px${image.mpp_source ? ` (${image.mpp_source})` : ""}` : image.mm_per_px ? `${image.mm_per_px} mm/px` : "unknown",
            format: image.format, levels: image.levels?.length, colours: profileText(image), decisions: image.decisions?.length ? image.decisions : undefined,
          }} />
          {image.label_images?.map((one) => (
            <figure key={one} class="label-image">
              <img alt={`${one} of the slide`} src={`api/cases/${detail.id}/label-image?${query({ name: one })}`} />
              <figcaption>{one}</figcaption>
            </figure>
          ))}
        </section>
      ))}
    </>
  );
}

export function Values({ values }: { values: Record<string, unknown> }) {
  const entries = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return (
    <dl class="values">
      {entries.map(([name, value]) => [<dt>{word(name)}</dt>, <dd><Value value={value} /></dd>])}
    </dl>
  );
}

function Value({ value }: { value: unknown }) {
  if (Array.isArray(value)) return <>{value.length ? value.map((item) => (typeof item === "object" ? JSON.stringify(item) : String(item))).join(", ") : "none"}</>;
  if (typeof value === "object" && value !== null) return <Values values={value as Record<string, unknown>} />;
  if (typeof value === "string" && /^(sha256:)?[0-9a-f]{40,}$/.test(value)) return <code title={value}>{value.slice(0, 19)}…</code>;
  return <>{typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : String(value)}</>;
}
