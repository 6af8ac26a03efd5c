// A Nextflow module in the style of nf-core: one task per shard.
//
// Not run in the tests of Lobule: only its structure is checked. A task writes into a results folder of its
// own, because tasks of Nextflow do not share folders. LOBULE_SCAN therefore emits one folder per shard.
process LOBULE_SCAN {
    tag "${meta.id} ${shard}/${shards}"
    label 'process_high'

    container 'registry.example/lobule:0.1.0'

    input:
    tuple val(meta), path(bundle), path(cohort), val(shard), val(shards)

    output:
    tuple val(meta), path("${prefix}.results"), emit: results
    path 'versions.yml', emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}.${shard}"
    """
    lobule scan ${bundle} ${cohort} --out ${prefix}.results --shard ${shard}/${shards} ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        lobule: \$(lobule --version | cut -d' ' -f2)
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}.${shard}"
    """
    mkdir ${prefix}.results
    touch ${prefix}.results/scan.json versions.yml
    """
}
